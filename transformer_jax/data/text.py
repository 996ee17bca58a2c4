"""Language modelling on any text: windows of bytes that follow one another."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from transformer_jax.data import baselines
from transformer_jax.data.task import Batch, Metric, Split, Task


@dataclass(frozen=True, kw_only=True)
class Text(Task):
    """Example i reads the bytes of a split from i·length on and predicts each one's successor.

    Documents follow one another, a zero byte after each; windows cross their borders, and what does not fill
    a last window is left out. A subclass gives `documents`.
    """

    metric: ClassVar[Metric] = "bits_per_byte"

    length: int = 1024

    @property
    def vocabulary(self) -> int:
        return 256

    def documents(self, split: Split, directory: Path) -> Iterator[bytes]:
        """The documents of a split in order, as long as one likes."""
        raise NotImplementedError

    def tokens(self, document: bytes) -> np.ndarray:
        """The ids of a document and what ends it."""
        return np.frombuffer(document + b"\0", np.uint8)

    def rows(self, split: Split, directory: Path) -> Iterator[Mapping[str, Any]]:
        kept: list[np.ndarray] = []
        size = 0
        for document in self.documents(split, directory):
            kept.append(self.tokens(document))
            size += len(kept[-1])
            if size > self.length:
                text = np.concatenate(kept)
                starts = range(0, size - self.length, self.length)
                for start in starts:
                    yield {"text": text[start : start + self.length + 1]}
                kept = [text[len(starts) * self.length :]]
                size = len(kept[0])

    def collate(self, columns: Batch) -> Batch:
        text = columns["text"].astype(np.int32)
        targets = text[:, 1:]
        return {"inputs": text[:, :-1], "targets": targets, "weights": np.ones(targets.shape, np.float32)}

    def encode(self, text: str) -> np.ndarray:
        return np.frombuffer(text.encode(errors="surrogateescape"), np.uint8).astype(np.int32)

    def decode(self, tokens: np.ndarray) -> str:
        return tokens.astype(np.uint8).tobytes().decode(errors="replace")

    def measure_baselines(self, directory: Path) -> dict[str, float]:
        """Bits per byte on the test split; the compressors see that split alone."""
        from transformer_jax.data import builders

        train, test = (
            builders.read(self, split, directory).columns()["text"][:, :-1].reshape(-1)
            for split in ("train", "test")
        )
        return baselines.of_bytes(train, test)
