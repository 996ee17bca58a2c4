"""What the tasks of formal languages share: strings of many lengths, an answer after the last symbol."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from transformer_jax.data.draws import Draws
from transformer_jax.data.task import Batch, Generated, Task
from transformer_jax.errors import BadInput


@dataclass(frozen=True, kw_only=True)
class Formal(Generated):
    """A string is read and its value told at its last symbol; longer ones test what was learned.

    A string's length is uniform over shortest … length (where `odd`, over the odd ones of these); then comes
    padding, an id of its own, and "lengths" says where it begins. The evaluation "40-256", or what the two
    fields say, has lengths from test_from to test_to; the test split itself has the training's. Published
    accuracies of these tasks are often scaled so that chance is 0; ours are plain.

    A subclass gives `symbols`, `outputs` and `strings`.
    """

    odd: ClassVar[bool] = False
    padded: ClassVar[bool] = True

    length: int = 40
    shortest: int = 3
    test_from: int = 40
    test_to: int = 256
    test_examples: int = 2000

    def check(self) -> None:
        self.whole("shortest")
        self.whole("test_from")
        self.whole("test_to", at_least=0)
        if self.shortest > self.length or 0 < self.test_to < self.test_from:
            raise BadInput(
                f"{self.name}: lengths {self.shortest} to {self.length} and {self.test_from} to "
                f"{self.test_to} must each rise; lower the first, or raise the second (test_to=0: none)."
            )
        if self.odd and (self.shortest % 2 == 0 == self.length - self.shortest):
            raise BadInput(f"{self.name}: no odd length lies in {self.shortest} to {self.length}; widen it.")

    @property
    def symbols(self) -> int:
        """Ids of the strings; padding comes after them."""
        raise NotImplementedError

    @property
    def vocabulary(self) -> int:
        return self.symbols + 1

    def strings(self, seed: int, indices: np.ndarray, lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Symbols (B, length) int64, anything beyond a string's length (B,), and the values (B,)."""
        raise NotImplementedError

    def examples(self, seed: int, indices: np.ndarray, step: int = 0) -> Batch:
        # Stream 1: the strings draw from stream 0, and must not follow from their lengths.
        draw, step_ = Draws(seed, indices, stream=1), 2 if self.odd else 1
        first = self.shortest + (self.odd and self.shortest % 2 == 0)
        lengths = first + step_ * draw.below((self.length - first) // step_ + 1, 1)[:, 0]
        symbols, values = self.strings(seed, indices, lengths)
        inside = np.arange(self.length) < lengths[:, None]
        last = lengths[:, None] - 1
        targets, weights = np.zeros(symbols.shape, np.int32), np.zeros(symbols.shape, np.float32)
        np.put_along_axis(targets, last, values[:, None].astype(np.int32), axis=1)
        np.put_along_axis(weights, last, np.float32(1), axis=1)
        return {
            "inputs": np.where(inside, symbols, self.symbols).astype(np.int32),
            "targets": targets,
            "weights": weights,
            "lengths": lengths.astype(np.int32),
        }

    def evaluations(self) -> dict[str, Task]:
        if not self.test_to:
            return {}
        longer = dataclasses.replace(self, shortest=self.test_from, length=self.test_to, test_to=0)
        return {f"{self.test_from}-{self.test_to}": longer}

    def guesses(self) -> dict[str, float]:
        return {"chance": 1 / self.outputs}
