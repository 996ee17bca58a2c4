"""Masked modelling of the standard library's sources: an encoder restores bytes that were hidden."""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np

from transformer_jax.data.draws import Draws
from transformer_jax.data.task import Batch, Metric
from transformer_jax.data.tasks.python_text import PythonText, corpus
from transformer_jax.errors import BadInput

MASK = 256


@dataclass(frozen=True, kw_only=True)
class MaskedPythonText(PythonText):
    """BERT's objective (arXiv:1810.04805, section 3.1) on `python_text`: restore a `rate` of the bytes.

    Of the chosen bytes 80% are hidden behind the mask (id 256), 10% become a random byte, 10% stay. Which
    ones follows from the window's own bytes, so a window is masked alike in every epoch; the original
    drew ten maskings.
    """

    name: ClassVar[str] = "masked_python_text"
    metric: ClassVar[Metric] = "accuracy"
    causal: ClassVar[bool] = False

    rate: float = 0.15

    def check(self) -> None:
        if not 0 < self.rate < 1:
            raise BadInput(f"{self.name}: rate is {self.rate}; it must lie between 0 and 1.")

    @property
    def vocabulary(self) -> int:
        return 257

    def collate(self, columns: Batch) -> Batch:
        text = columns["text"][:, :-1].astype(np.int32)
        draws = Draws(0, np.array([zlib.crc32(row.tobytes()) for row in text]))
        chosen = draws.uniform(self.length) < self.rate
        fate = draws.uniform(self.length)
        inputs = np.where(chosen & (fate < 0.8), MASK, text)
        inputs = np.where(chosen & (fate >= 0.9), draws.below(256, self.length), inputs)
        return {"inputs": inputs.astype(np.int32), "targets": text, "weights": chosen.astype(np.float32)}

    def measure_baselines(self, directory: Path) -> dict[str, float]:
        """Accuracy on the test split of one byte of 256, and of the commonest byte of the training split."""
        train, test = corpus()["train"], corpus()["test"]
        return {"chance": 1 / 256, "majority": float(np.mean(test == np.bincount(train).argmax()))}
