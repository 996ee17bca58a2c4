"""Needle retrieval: what was said once, somewhere in a long haystack?"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from transformer_jax.data.draws import Draws
from transformer_jax.data.task import Batch, Generated, Task
from transformer_jax.errors import BadInput

NEEDLE, QUESTION = 0, 1


@dataclass(frozen=True, kw_only=True)
class NeedleRetrieval(Generated):
    """A needle in a haystack (RULER, arXiv 2404.06654: one needle or several), in random tokens.

    A needle is a sign (id 0), a key and `digits` tokens of its value. Needles, with different keys, lie in
    random filler; the row ends with a question (id 1), the key of one of them, and its value, every token of
    which is to be predicted from those before it. Keys, values and filler have `alphabet` ids each. RULER's
    needles are sentences in a text, and its models are not trained on them: numbers do not compare.

    depth: where the needle that is asked for lies, 0 at the beginning, 1 at the end (to the accuracy that the
      other needles leave); None: anywhere.
    evaluations: at depths 0, 0.25, … 1, and at twice the length, four times, … up to test_up_to.
    """

    name: ClassVar[str] = "needle_retrieval"

    length: int = 512
    needles: int = 1
    digits: int = 4
    alphabet: int = 64
    depth: float | None = None
    test_up_to: int = 2048
    validation_examples: int = 512
    test_examples: int = 512

    def check(self) -> None:
        for field in ("needles", "digits"):
            self.whole(field)
        self.whole("alphabet", at_least=2)
        self.whole("test_up_to", at_least=0)
        if self.depth is not None and not (isinstance(self.depth, int | float) and 0 <= self.depth <= 1):
            raise BadInput(f"needle_retrieval: depth is {self.depth!r}; it must lie between 0 and 1.")
        if self.needles > self.alphabet:
            raise BadInput(
                f"needle_retrieval: {self.needles} needles need as many keys, and alphabet is "
                f"{self.alphabet}; raise alphabet or lower needles."
            )
        if (least := self.needles * (2 + self.digits) + 1 + self.digits) > self.length:
            raise BadInput(
                f"needle_retrieval: the needles and the question need a length of at least {least}, not "
                f"{self.length}; raise length, or lower needles or digits."
            )

    @property
    def vocabulary(self) -> int:
        return 2 + 3 * self.alphabet

    def examples(self, seed: int, indices: np.ndarray, step: int = 0) -> Batch:
        draw, size, hay = Draws(seed, indices), 2 + self.digits, self.length - 1 - self.digits
        count, rows = len(indices), np.arange(len(indices))
        inputs = 2 + 2 * self.alphabet + draw.below(self.alphabet, self.length)
        keys = 2 + draw.distinct(self.alphabet, self.needles)
        values = 2 + self.alphabet + draw.below(self.alphabet, self.needles * self.digits)
        values = values.reshape(count, self.needles, self.digits)

        # Needle 0 is asked for. Each needle counts as one place while places are drawn.
        free = hay - self.needles * (size - 1)
        places = draw.distinct(free, self.needles)
        if self.depth is not None:
            places[:, 0] = round(self.depth * (free - 1))
            others = draw.distinct(free - 1, self.needles - 1)
            places[:, 1:] = others + (others >= places[:, :1])
        before = np.argsort(np.argsort(places, axis=1), axis=1)
        starts = places + before * (size - 1)
        for needle in range(self.needles):
            told = np.concatenate([np.full((count, 1), NEEDLE), keys[:, [needle]], values[:, needle]], axis=1)
            inputs[rows[:, None], starts[:, [needle]] + np.arange(size)] = told

        inputs[:, hay], inputs[:, hay + 1], inputs[:, hay + 2 :] = QUESTION, keys[:, 0], values[:, 0, :-1]
        targets, weights = np.zeros(inputs.shape, np.int32), np.zeros(inputs.shape, np.float32)
        targets[:, hay + 1 :], weights[:, hay + 1 :] = values[:, 0], 1
        return {"inputs": inputs.astype(np.int32), "targets": targets, "weights": weights}

    def evaluations(self) -> dict[str, Task]:
        if not self.test_up_to:
            return {}
        here = dataclasses.replace(self, test_up_to=0)
        found: dict[str, Task] = {
            f"depth {depth:g}": dataclasses.replace(here, depth=depth)
            for depth in (0.0, 0.25, 0.5, 0.75, 1.0)
        }
        length = 2 * self.length
        while length <= self.test_up_to:
            found[str(length)] = dataclasses.replace(here, length=length)
            length *= 2
        return found

    def guesses(self) -> dict[str, float]:
        """chance: any value; in context: the value of any needle shown."""
        return {
            "chance": 1 / self.alphabet,
            "in context": (1 + (self.needles - 1) / self.alphabet) / self.needles,
        }
