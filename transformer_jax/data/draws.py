"""Random numbers that depend on (seed, index, draw, column) and on nothing else.

A counter-based scheme in whole-array numpy: any subset of a task's examples, in any order and in any batch,
equals the same rows of the whole. numpy's own generators are sequential, one object per example would cost
microseconds each, and their streams may change between numpy versions; a finalizer of 64 bits written out
here cannot.
"""

from __future__ import annotations

import numpy as np
from scipy.special import ndtri

GOLDEN = np.uint64(0x9E3779B97F4A7C15)  # 2^64 / golden ratio: the increment of splitmix64


def mix(x: np.ndarray) -> np.ndarray:
    """The finalizer of splitmix64 (Steele, Lea, Flood 2014): a bijection of uint64."""
    x = x ^ (x >> np.uint64(30))
    x *= np.uint64(0xBF58476D1CE4E5B9)
    x ^= x >> np.uint64(27)
    x *= np.uint64(0x94D049BB133111EB)
    x ^= x >> np.uint64(31)
    return x


def to_unit(bits: np.ndarray) -> np.ndarray:
    """Uniform bits to float64 in the open interval (0, 1)."""
    return ((bits >> np.uint64(12)).astype(np.float64) + 0.5) * 2.0**-52


def to_below(bits: np.ndarray, bound: int | np.ndarray) -> np.ndarray:
    """Uniform bits to int64 in [0, bound), bias below bound / 2^32; bounds below 2^32."""
    return (((bits >> np.uint64(32)) * np.asarray(bound, np.uint64)) >> np.uint64(32)).astype(np.int64)


class Draws:
    """Independent draws for n examples. Every call is a new draw; all return arrays of n rows.

    seed: any whole number of 64 bits, signed (run seeds are 0 or more; the fixed splits use negative ones).
    indices: (n,) which examples.
    stream: a number of at least 0; each gives draws of its own, such as one attempt of several.
    """

    def __init__(self, seed: int, indices: np.ndarray, stream: int = 0):
        word = np.array([seed % 2**64], np.uint64)
        self._rows = mix(mix(word + GOLDEN) + (np.asarray(indices).astype(np.uint64) + np.uint64(1)) * GOLDEN)
        if stream:
            self._rows = mix(self._rows ^ mix(np.array([stream], np.uint64) * GOLDEN))
        self._calls = 0

    def __len__(self) -> int:
        return len(self._rows)

    def bits(self, columns: int) -> np.ndarray:
        """(n, columns) uint64, uniform."""
        return mix(self._call()[:, None] + (np.arange(columns, dtype=np.uint64) + np.uint64(1)) * GOLDEN)

    def bits_at(self, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
        """(m,) uint64: what `bits` gives at these places, for examples that need different numbers of draws.

        rows, columns: (m,) int64.
        """
        return mix(self._call()[rows] + (columns.astype(np.uint64) + np.uint64(1)) * GOLDEN)

    def _call(self) -> np.ndarray:
        self._calls += 1
        return mix(self._rows + np.array([self._calls], np.uint64) * GOLDEN)

    def uniform(self, columns: int) -> np.ndarray:
        """(n, columns) float64 in the open interval (0, 1)."""
        return to_unit(self.bits(columns))

    def below(self, bound: int | np.ndarray, columns: int) -> np.ndarray:
        """(n, columns) int64 in [0, bound), bias below bound / 2^32. bound: one, or one per column."""
        return to_below(self.bits(columns), bound)

    def distinct(self, bound: int, count: int) -> np.ndarray:
        """(n, count) int64, distinct within a row, in [0, bound), every ordered choice equally likely.

        Floyd's sampling (Bentley and Floyd 1987): `count` steps whatever the bound, then a shuffle of each
        row.
        """
        tops = np.arange(bound - count, bound)
        candidates = self.below(tops + 1, count)
        chosen = np.empty_like(candidates)
        for i, top in enumerate(tops):
            taken = (chosen[:, :i] == candidates[:, i : i + 1]).any(axis=1)
            chosen[:, i] = np.where(taken, top, candidates[:, i])
        return np.take_along_axis(chosen, np.argsort(self.bits(count), axis=1, kind="stable"), axis=1)

    def normal(self, columns: int) -> np.ndarray:
        """(n, columns) float64, standard normal."""
        return ndtri(self.uniform(columns))

    def weighted(self, weights: np.ndarray, count: int) -> np.ndarray:
        """(n, count) int64, distinct within a row: successive draws from {0, …} with probability ∝ weights.

        Exponential races: the order in which clocks of rate `weights` ring is the order of successive draws
        without replacement.
        """
        rings = -np.log(self.uniform(len(weights))) / weights
        return np.argsort(rings, axis=1, kind="stable")[:, :count]


def permutation(seed: int, epoch: int, size: int) -> np.ndarray:
    """(size,) int64: the order of a finite training set in one epoch, the same on every machine."""
    return np.argsort(Draws(seed, np.array([epoch])).bits(size)[0], kind="stable")
