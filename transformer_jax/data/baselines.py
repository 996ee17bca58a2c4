"""What counting alone scores: fitted on one set of examples, measured on another."""

from __future__ import annotations

import lzma
import zlib

import numpy as np

from transformer_jax.data.task import Batch


def _scored(batch: Batch) -> tuple[np.ndarray, np.ndarray]:
    """(inputs, targets) at the positions that carry loss; for "sequence" targets every input counts as 0."""
    inputs, targets, scored = batch["inputs"], batch["targets"], batch["weights"] > 0
    return (inputs[scored] if inputs.shape == targets.shape else np.zeros(scored.sum(), np.int32)), targets[
        scored
    ]


def majority_accuracy(known: Batch, test: Batch) -> float:
    """Always the most frequent target."""
    best = np.bincount(_scored(known)[1]).argmax()
    return float(np.mean(_scored(test)[1] == best))


def bigram_accuracy(known: Batch, test: Batch) -> float:
    """The most frequent target after the current token; the most frequent of all where that is new."""
    inputs, targets = _scored(known)
    test_inputs, test_targets = _scored(test)
    pairs, counts = np.unique(np.stack([inputs, targets]), axis=1, return_counts=True)
    guess = np.full(1 + max(inputs.max(), test_inputs.max()), np.bincount(targets).argmax())
    order = np.argsort(counts, kind="stable")  # the most frequent pair of a token is written last
    guess[pairs[0, order]] = pairs[1, order]
    return float(np.mean(guess[test_inputs] == test_targets))


def unigram_bits(known: np.ndarray, test: np.ndarray) -> float:
    """Bits per byte of a byte's frequency with add-one smoothing. known, test: uint8 text."""
    counts = np.bincount(known, minlength=256) + 1.0
    return float(-np.log2(counts / counts.sum())[test].mean())


def bigram_bits(known: np.ndarray, test: np.ndarray) -> float:
    """Bits per byte of a byte's frequency after the byte before it, with add-one smoothing.

    known, test: uint8 text; the first byte of `test` is context only.
    """
    pairs = known[:-1].astype(np.int64) * 256 + known[1:]
    counts = np.bincount(pairs, minlength=256 * 256).reshape(256, 256) + 1.0
    return float(-np.log2(counts / counts.sum(axis=1, keepdims=True))[test[:-1], test[1:]].mean())


def gzip_bits(test: np.ndarray) -> float:
    """Bits per byte of DEFLATE at its best level on the test text alone."""
    return 8 * len(zlib.compress(test.tobytes(), 9)) / len(test)


def lzma_bits(test: np.ndarray) -> float:
    """Bits per byte of LZMA on the test text alone."""
    return 8 * len(lzma.compress(test.tobytes(), format=lzma.FORMAT_ALONE)) / len(test)


def of_bytes(known: np.ndarray, test: np.ndarray) -> dict[str, float]:
    """Bits per byte on `test` of all the above."""
    return {
        "uniform": 8.0,
        "unigram": unigram_bits(known, test),
        "bigram": bigram_bits(known, test),
        "gzip": gzip_bits(test),
        "lzma": lzma_bits(test),
    }


class NaiveBayes:
    """Bag of bytes, one multinomial per class with add-one smoothing, classes equally likely a priori."""

    def __init__(self, classes: int):
        self._counts = np.ones((classes, 256))

    def learn(self, text: bytes, label: int) -> None:
        """Counts one document."""
        self._counts[label] += np.bincount(np.frombuffer(text, np.uint8), minlength=256)

    def guess(self, text: bytes) -> int:
        """The likeliest class of a document."""
        logs = np.log(self._counts / self._counts.sum(axis=1, keepdims=True))
        return int((logs @ np.bincount(np.frombuffer(text, np.uint8), minlength=256)).argmax())
