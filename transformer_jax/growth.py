"""How a cost grows with the length T, and from which length on it is below another."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

import numpy as np


def exponent(points: Iterable[tuple[float, float]]) -> float | None:
    """p of a cost like Tᵖ, of points (T, cost), by least squares of the logarithms; None for fewer than two
    lengths."""
    found = list(points)
    if len({length for length, _ in found}) < 2:
        return None
    x, y = np.log(np.array(found, float)).T
    return float(np.polyfit(x, y, 1)[0])


def below_from(mine: Mapping[int, float], theirs: Mapping[int, float]) -> float | None:
    """The first length from which on a cost is below another at every length that both have: infinite where
    it is not at the last, None where there is nothing to compare. Each is length -> cost."""
    both = sorted(mine.keys() & theirs.keys())
    if not both:
        return None
    above = [n for n, length in enumerate(both) if mine[length] >= theirs[length]]
    below = both[above[-1] + 1 :] if above else both
    return below[0] if below else math.inf
