"""Parity: is the number of ones odd?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from transformer_jax.data.draws import Draws
from transformer_jax.data.tasks.formal import Formal


@dataclass(frozen=True, kw_only=True)
class Parity(Formal):
    """Parity of a string of bits ("Parity Check" of arXiv 2207.02098; parity of 2411.12537)."""

    name: ClassVar[str] = "parity"

    @property
    def symbols(self) -> int:
        return 2

    @property
    def outputs(self) -> int:
        return 2

    def strings(self, seed: int, indices: np.ndarray, lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        bits = Draws(seed, indices).below(2, self.length)
        inside = np.arange(self.length) < lengths[:, None]
        return bits, (bits * inside).sum(axis=1) % 2
