"""Induction heads: what followed the trigger the first time?"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from transformer_jax.data.draws import Draws
from transformer_jax.data.task import Batch, Generated, Task


@dataclass(frozen=True, kw_only=True)
class InductionHeads(Generated):
    """The induction heads task of Mamba (arXiv 2312.00752, Table 11 and Appendix E.1).

    Tokens are random; one id, the last of the vocabulary, is the trigger. It stands once inside and again at
    the end, and the answer, the token after its first occurrence, is the target of the last position; no
    other carries loss.
    Where the paper is silent: the first trigger's position is uniform over 0 .. length − 3, answers and
    filler are uniform over the vocabulary − 1 other ids, and each test length has `test_examples` fixed
    examples.

    test_up_to: the evaluations are at lengths 64, 128, … up to this one; 0 has none.
    """

    name: ClassVar[str] = "induction_heads"

    length: int = 256
    vocabulary: int = 16  # type: ignore[assignment]
    test_up_to: int = 16384
    validation_examples: int = 512
    test_examples: int = 512

    def check(self) -> None:
        self.whole("length", at_least=3)
        self.whole("vocabulary", at_least=3)
        self.whole("test_up_to", at_least=0)

    def examples(self, seed: int, indices: np.ndarray, step: int = 0) -> Batch:
        draw, trigger = Draws(seed, indices), self.vocabulary - 1
        first = draw.below(self.length - 2, 1)
        inputs = draw.below(trigger, self.length).astype(np.int32)
        answer = np.take_along_axis(inputs, first + 1, axis=1)
        np.put_along_axis(inputs, first, np.int32(trigger), axis=1)
        inputs[:, -1] = trigger
        targets, weights = np.zeros_like(inputs), np.zeros(inputs.shape, np.float32)
        targets[:, -1:] = answer
        weights[:, -1] = 1
        return {"inputs": inputs, "targets": targets, "weights": weights}

    def evaluations(self) -> dict[str, Task]:
        lengths = (2**power for power in range(6, self.test_up_to.bit_length()))
        return {str(length): dataclasses.replace(self, length=length, test_up_to=0) for length in lengths}

    def guesses(self) -> dict[str, float]:
        return {"chance": 1 / (self.vocabulary - 1)}
