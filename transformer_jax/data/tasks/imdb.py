"""Sentiment of film reviews, read byte by byte."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np

from transformer_jax.data import catalogue
from transformer_jax.data.archive import Parts, in_order, members, split_of
from transformer_jax.data.baselines import NaiveBayes
from transformer_jax.data.task import SPLITS, Batch, Split, Task
from transformer_jax.errors import BadInput, unknown

PADDING = 256
MEMBER = re.compile(r"(?:\./)?aclImdb/(train|test)/(neg|pos)/[^/]+\.txt")
REVIEWS = "reviews (aclImdb/train/neg, train/pos, test/neg and test/pos)"


@dataclass(frozen=True, kw_only=True)
class Imdb(Task):
    """The Large Movie Review Dataset (Maas et al. 2011) as bytes (arXiv 2011.04006 "Text"); 1 is positive.

    A review's first `length` bytes are the input, then padding, an id of its own (256); "lengths" says where
    it begins. The original has no validation split: a tenth of its training reviews, those whose text has the
    smallest sha256, is held out (22,500 / 2,500 / 25,000), so the test split serves only the final score.
    That hash also gives the order, so the catalogue and an archive with the same reviews yield the same
    examples.

    test_examples: score the first so many test reviews of that order, a fair sample, where all would take too
      long; None: all.
    archive: a downloaded aclImdb_v1.tar.gz; None takes the catalogue's imdb_reviews, which downloads it.
    """

    name: ClassVar[str] = "imdb"
    target: ClassVar[Literal["token", "sequence"]] = "sequence"
    causal: ClassVar[bool] = False
    padded: ClassVar[bool] = True

    length: int = 4096
    test_examples: int | None = None
    archive: str | None = None

    @property
    def vocabulary(self) -> int:
        return 257

    @property
    def outputs(self) -> int:
        return 2

    def check(self) -> None:
        if self.test_examples is not None:
            self.whole("test_examples")
        if self.archive is not None and not Path(self.archive).is_file():
            raise BadInput(
                f"imdb: there is no archive at {self.archive}; "
                "give the path of aclImdb_v1.tar.gz, or none to download it."
            )

    def examples_in(self, split: Split) -> int:
        if split not in SPLITS:
            raise unknown("split", split, SPLITS)
        if self.archive is None:
            count = {"train": 22_500, "validation": 2_500, "test": 25_000}[split]
        else:
            count = len(split_of(archive_reviews(self.archive), split))
        return min(count, self.test_examples or count) if split == "test" else count

    def rows(self, split: Split, directory: Path) -> Iterator[Mapping[str, Any]]:
        reviews = archive_reviews(self.archive) if self.archive else catalogue_reviews(directory)
        for text, label in split_of(reviews, split)[: self.examples_in(split)]:
            yield {"text": text[: self.length], "label": label}

    def collate(self, columns: Batch) -> Batch:
        lengths = np.array([len(text) for text in columns["text"]], np.int32)
        inputs = np.full((len(lengths), self.length), PADDING, np.int32)
        inputs[np.arange(self.length) < lengths[:, None]] = np.frombuffer(b"".join(columns["text"]), np.uint8)
        labels = columns["label"].astype(np.int32)
        return {
            "inputs": inputs,
            "targets": labels,
            "weights": np.ones(len(labels), np.float32),
            "lengths": lengths,
        }

    def parameters(self) -> dict[str, Any]:
        """The archive counts by its content, not by its place."""
        return {**super().parameters(), "archive": catalogue.digest(self.archive) if self.archive else None}

    def measure_baselines(self, directory: Path) -> dict[str, float]:
        from transformer_jax.data import builders

        train, test = (builders.read(self, split, directory).columns() for split in ("train", "test"))
        bayes = NaiveBayes(self.outputs)
        for text, label in zip(train["text"], train["label"], strict=True):
            bayes.learn(text, label)
        guesses = np.array([bayes.guess(text) for text in test["text"]])
        return {
            "chance": 0.5,
            "majority": float(np.mean(test["label"] == np.bincount(train["label"]).argmax())),
            "naive Bayes of bytes": float(np.mean(test["label"] == guesses)),
        }


@functools.lru_cache(maxsize=1)
def archive_reviews(archive: str) -> Parts[bytes]:
    """The labelled reviews of an archive in the original's layout."""
    reviews: Parts[bytes] = {"train": [], "test": []}
    for match, content in members(archive, MEMBER, "imdb"):
        text = content.strip()  # as the catalogue does
        if not text:
            raise BadInput(f"imdb: {match[0]} in {archive} is empty; get the archive anew.")
        reviews[match[1]].append((text, int(match[2] == "pos")))
    return in_order(reviews, f"imdb: {archive}", REVIEWS)


@functools.lru_cache(maxsize=1)
def catalogue_reviews(directory: Path) -> Parts[bytes]:
    """The labelled reviews of the catalogue's imdb_reviews."""
    name, otherwise = "imdb_reviews/plain_text", "point task.archive at a downloaded aclImdb_v1.tar.gz"
    reviews = {
        part: [
            (catalogue.as_bytes(row["text"]), int(row["label"]))
            for row in catalogue.records(name, part, directory, otherwise)
        ]
        for part in ("train", "test")
    }
    return in_order(reviews, "imdb: the catalogue's imdb_reviews", REVIEWS)
