"""Associative recall at several lengths and numbers of pairs at once, tested beyond those trained on."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np

from transformer_jax.data.draws import Draws
from transformer_jax.data.task import FIXED_SEEDS, Batch, Generated, Split, Task
from transformer_jax.data.tasks.associative_recall import AssociativeRecall
from transformer_jax.errors import BadInput


@dataclass(frozen=True, kw_only=True)
class RecallMix(Generated):
    """The mix of Based's recall against state size (arXiv 2402.18668, in the Zoology repository's setting).

    Each example is one of `associative_recall`: with the length and the number of pairs of a part of `mix`,
    drawn by its share, for training; of `tests`, in turn, for validation and test. Shorter rows are padded.
    The source fills a batch from one part and averages over its questions, so an example counts the same
    however many it asks: here a question weighs 1 / pairs. Accuracy is therefore the mean over examples.
    """

    name: ClassVar[str] = "recall_mix"
    padded: ClassVar[bool] = True

    length: int = 256
    mix: tuple[tuple[int, int, int], ...] = (
        (64, 4, 100_000),
        (128, 8, 20_000),
        (256, 16, 20_000),
        (256, 32, 20_000),
        (256, 64, 20_000),
    )
    """Length, pairs, share."""
    tests: tuple[tuple[int, int], ...] = (
        (64, 4),
        (64, 8),
        (64, 16),
        (128, 32),
        (256, 64),
        (512, 128),
        (1024, 256),
    )
    """Length, pairs."""
    vocabulary: int = 8192  # type: ignore[assignment]
    filler: Literal["zeros", "random"] = "random"
    validation_examples: int = 700
    test_examples: int = 7000

    def check(self) -> None:
        for length, pairs in (*((length, pairs) for length, pairs, _ in self.mix), *self.tests):
            self.part(length, pairs)
        if not self.mix or any(share <= 0 for *_, share in self.mix) or not self.tests:
            raise BadInput("recall_mix: mix needs parts with positive shares, and tests at least one entry.")
        if (longest := max(length for length, *_ in self.mix)) > self.length:
            raise BadInput(f"recall_mix: mix holds rows of {longest} tokens: length must be at least that.")

    def part(self, length: int, pairs: int, **fields: Any) -> AssociativeRecall:
        """The task of one length and number of pairs."""
        return AssociativeRecall(
            length=length, pairs=pairs, vocabulary=self.vocabulary, filler=self.filler, **fields
        )

    @property
    def longest(self) -> int:
        return max(self.length, *(length for length, _ in self.tests))

    def examples(self, seed: int, indices: np.ndarray, step: int = 0) -> Batch:
        shares = np.cumsum([share for *_, share in self.mix])
        # Stream 1: the parts draw from stream 0.
        drawn = Draws(seed, indices, stream=1).uniform(1)[:, 0] * shares[-1]
        parts = [(length, pairs) for length, pairs, _ in self.mix]
        return self._assemble(seed, indices, parts, np.searchsorted(shares, drawn, side="right"), self.length)

    def rows(self, split: Split, directory: Path) -> Iterator[Mapping[str, Any]]:
        if split == "train":
            yield from super().rows(split, directory)
            return
        for start in range(0, self.examples_in(split), 512):
            indices = np.arange(start, min(start + 512, self.examples_in(split)))
            which = indices % len(self.tests)
            yield from self.records(
                self._assemble(FIXED_SEEDS[split], indices, list(self.tests), which, self.longest)
            )

    def _assemble(self, seed: int, indices: np.ndarray, parts, which: np.ndarray, width: int) -> Batch:
        """The rows of several parts, `which` (B,) of them for each, padded to `width`."""
        batch: Batch = {
            "inputs": np.zeros((len(indices), width), np.int32),
            "targets": np.zeros((len(indices), width), np.int32),
            "weights": np.zeros((len(indices), width), np.float32),
            "lengths": np.array([length for length, _ in parts], np.int32)[which],
        }
        for number, (length, pairs) in enumerate(parts):
            rows = np.flatnonzero(which == number)
            part = self.part(length, pairs).examples(seed, indices[rows])
            part["weights"] /= pairs
            for name, values in part.items():
                batch[name][rows, :length] = values
        return batch

    def evaluations(self) -> dict[str, Task]:
        each = max(1, self.test_examples // len(self.tests))
        return {
            f"{length}x{pairs}": self.part(
                length, pairs, validation_examples=self.validation_examples, test_examples=each
            )
            for length, pairs in self.tests
        }

    def guesses(self) -> dict[str, float]:
        """As for `associative_recall`, meant over the tests."""
        found = [self.part(length, pairs).guesses() for length, pairs in self.tests]
        return {name: float(np.mean([guess[name] for guess in found])) for name in found[0]}
