"""Does our number reproduce the published one? One rule for all."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from transformer_jax.report.statistics import half_width

Word = Literal["reproduced", "inconclusive", "did not reproduce", "not comparable"]


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """`tolerance` is τ; None where nothing was compared, or where one seed leaves it open."""

    word: Word
    why: str
    difference: float | None = None
    tolerance: float | None = None


def judge(
    ours: Sequence[float],
    published: float,
    *,
    precision: float,
    gap: float | None,
    departures: Sequence[str] = (),
) -> Verdict:
    """The verdict on one number.

    With τ the larger of the source's own precision and our 95% half-width: reproduced where the
    difference is within τ; inconclusive where τ exceeds the published gap; otherwise not reproduced.

    Args:
      ours: our scores, one per seed.
      precision: of the source, in units of the metric.
      gap: between the largest and the smallest published value of the variants compared; None where
        there is nothing to tell apart.
      departures: how our data, steps or budget differ from the published ones: if they do, nothing
        can be said.
    """
    if not ours:
        return Verdict(word="not comparable", why="no run of this variant finished")
    difference = float(np.mean(ours)) - published
    if departures:
        more = f" and {len(departures) - 3} more" if len(departures) > 3 else ""
        return Verdict(word="not comparable", why="; ".join(departures[:3]) + more, difference=difference)
    width = half_width(ours)
    tolerance = max(precision, width or 0.0)
    whence = (
        f"95% half-width of {len(ours)} seeds" if width and width > precision else "the source's precision"
    )
    # Sums of decimals: 0.3 - 0.2 is within 0.1.
    within = abs(difference) <= tolerance + 1e-12
    size = f"difference {difference:+.3f}, τ = {tolerance:.3g} ({whence})"
    if width is None and not within:
        return Verdict(word="inconclusive", why=f"{size}; one seed leaves τ open", difference=difference)
    blunt = gap is not None and tolerance > gap
    if within:
        warning = f"; τ exceeds the published gap of {gap:.3g}, so the match says little" if blunt else ""
        return Verdict(word="reproduced", why=size + warning, difference=difference, tolerance=tolerance)
    if blunt:
        why = f"{size} exceeds the published gap of {gap:.3g}"
        return Verdict(word="inconclusive", why=why, difference=difference, tolerance=tolerance)
    return Verdict(word="did not reproduce", why=size, difference=difference, tolerance=tolerance)
