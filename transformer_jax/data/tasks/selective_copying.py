"""Selective copying: pick the data out of the noise, then say them in order."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from transformer_jax.data.draws import Draws
from transformer_jax.data.task import Batch, Generated
from transformer_jax.errors import BadInput

NOISE, MARKER = 0, 1


@dataclass(frozen=True, kw_only=True)
class SelectiveCopying(Generated):
    """The selective copying task of Mamba (arXiv 2312.00752, section 3.1 and Table 1).

    `data` tokens stand at random places among noise; then as many markers, at which they are to be said in
    their order. Ids: 0 is noise, 1 the marker, the symbols follow.
    The generator was never released. Where the text is silent: `length` counts the markers too; marker and
    noise are two of the `vocabulary` ids; every set of places is equally likely, and symbols may repeat.
    """

    name: ClassVar[str] = "selective_copying"

    length: int = 4096
    data: int = 16
    vocabulary: int = 16  # type: ignore[assignment]

    def check(self) -> None:
        self.whole("data")
        self.whole("vocabulary", at_least=4)
        if 2 * self.data > self.length:
            raise BadInput(
                f"selective_copying: {self.data} data tokens and as many markers need a length of at least "
                f"{2 * self.data}, not {self.length}; raise length or lower data."
            )

    def examples(self, seed: int, indices: np.ndarray, step: int = 0) -> Batch:
        draw, read = Draws(seed, indices), self.length - self.data
        places = np.sort(draw.distinct(read, self.data), axis=1)
        word = (2 + draw.below(self.vocabulary - 2, self.data)).astype(np.int32)
        shape = (len(word), self.length)
        inputs, targets, weights = np.zeros(shape, np.int32), np.zeros(shape, np.int32), np.zeros(shape, "f4")
        np.put_along_axis(inputs, places, word, axis=1)
        inputs[:, read:] = MARKER
        targets[:, read:] = word
        weights[:, read:] = 1
        return {"inputs": inputs, "targets": targets, "weights": weights}

    def guesses(self) -> dict[str, float]:
        return {"chance": 1 / (self.vocabulary - 2)}
