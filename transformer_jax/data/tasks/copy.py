"""Copying: read a word and a separator, then say the word again."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from transformer_jax.data.draws import Draws
from transformer_jax.data.task import Batch, Generated

PADDING, SEPARATOR = 0, 1


@dataclass(frozen=True, kw_only=True)
class Copy(Generated):
    """The copy task of the Linear Transformer (arXiv 2006.16236, section 4.1), after the Reformer's.

    A row is w, separator, w, padding; each token predicts the next, and only the second w carries loss. Ids:
    0 is padding, 1 the separator, the symbols follow.
    Where the paper is silent: we take "maximum length 128" as the tokens that are read, separator included,
    so w has up to length/2 symbols; its length is uniform over 1 .. length/2.
    """

    name: ClassVar[str] = "copy"

    length: int = 128
    symbols: int = 10

    def check(self) -> None:
        self.whole("length", at_least=2)
        self.whole("symbols", at_least=2)

    @property
    def vocabulary(self) -> int:
        return 2 + self.symbols

    def examples(self, seed: int, indices: np.ndarray, step: int = 0) -> Batch:
        draw, most = Draws(seed, indices), self.length // 2
        size = 1 + draw.below(most, 1)
        word = 2 + draw.below(self.symbols, most)
        column = np.arange(self.length + 1)[None, :]
        second = column > size
        symbol = np.take_along_axis(
            word, np.clip(np.where(second, column - size - 1, column), 0, most - 1), axis=1
        )
        row = np.where(column == size, SEPARATOR, np.where(column <= 2 * size, symbol, PADDING)).astype(
            np.int32
        )
        scored = (second & (column <= 2 * size))[:, 1:]
        return {
            "inputs": row[:, :-1],
            "targets": np.where(scored, row[:, 1:], 0).astype(np.int32),
            "weights": scored.astype(np.float32),
        }

    def guesses(self) -> dict[str, float]:
        return {"chance": 1 / self.symbols}
