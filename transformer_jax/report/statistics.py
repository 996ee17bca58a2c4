"""Means, ranges, intervals and paired tests over seeds."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

ENOUGH_SEEDS = 5
"""Below this many seeds we show points and their range: no interval and no p-value."""


@dataclass(frozen=True, kw_only=True)
class Spread:
    """Scores of one variant over seeds; `half_width` is that of the 95% interval, from five seeds on."""

    count: int
    mean: float
    low: float
    high: float
    half_width: float | None


def half_width(values: Sequence[float]) -> float | None:
    """Half of the 95% interval of the mean, t · s / √n; None for a single value, which has no spread."""
    n = len(values)
    if n < 2:
        return None
    return float(stats.t.ppf(0.975, n - 1) * np.std(values, ddof=1) / math.sqrt(n))


def spread(values: Sequence[float]) -> Spread:
    """Mean and range, and from five values on the interval."""
    return Spread(
        count=len(values),
        mean=float(np.mean(values)),
        low=min(values),
        high=max(values),
        half_width=half_width(values) if len(values) >= ENOUGH_SEEDS else None,
    )


def paired_p(ours: Mapping[int, float], other: Mapping[int, float]) -> float | None:
    """Two-sided paired t-test over the seeds that both have; None below five of them."""
    seeds = sorted(set(ours) & set(other))
    if len(seeds) < ENOUGH_SEEDS:
        return None
    differences = np.array([ours[s] - other[s] for s in seeds])
    if np.ptp(differences) == 0:  # no spread: the t statistic is 0/0 or infinite
        return 1.0 if differences[0] == 0 else 0.0
    return float(stats.ttest_1samp(differences, 0.0).pvalue)


def paired_spread(ours: Mapping[int, float], other: Mapping[int, float]) -> Spread | None:
    """Of the differences ours − other, over the seeds that both have; None where they share none."""
    differences = [ours[seed] - other[seed] for seed in sorted(set(ours) & set(other))]
    return spread(differences) if differences else None


def frontier(points: Sequence[tuple[float, float]]) -> list[int]:
    """Indices of the points (cost, score) that no other beats: as cheap and better, or cheaper and as good.
    By cost; a higher score is better."""
    chosen: list[int] = []
    for i in sorted(range(len(points)), key=lambda i: (points[i][0], -points[i][1])):
        if not chosen or points[i][1] > points[chosen[-1]][1] or points[i] == points[chosen[-1]]:
            chosen.append(i)
    return chosen


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """p-values corrected for having asked several questions (Holm 1979, step down)."""
    adjusted, largest = {}, 0.0
    for rank, (name, p) in enumerate(sorted(p_values.items(), key=lambda item: item[1])):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p))
        adjusted[name] = largest
    return adjusted
