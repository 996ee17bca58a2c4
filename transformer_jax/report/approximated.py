"""The error of random features: a table by number of features, and what it says of the paper's claims."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.axes import Axes

from transformer_jax.report import plots
from transformer_jax.report.statistics import half_width, holm, paired_p
from transformer_jax.report.table import Column, Sheet

Row = dict[str, Any]
LEVEL = 0.05
NOT_CLAIMED = "not claimed"


@dataclass(frozen=True, kw_only=True)
class Claim:
    """That `less` has a smaller error than `more`, as a score of `field`. One that the source does not make
    stands beside the others for comparison."""

    says: str
    less: str
    more: str
    field: str = "mse"
    made: bool = True


CLAIMS = (
    Claim(
        says="orthogonal below independent, positive features",
        less="positive, orthogonal",
        more="positive, independent",
    ),
    Claim(
        says="orthogonal below independent, trigonometric features",
        less="trigonometric, orthogonal",
        more="trigonometric, independent",
    ),
    Claim(
        says="positive below trigonometric, orthogonal",
        less="positive, orthogonal",
        more="trigonometric, orthogonal",
    ),
    Claim(
        says="the same, of the smallest tenth of attention",
        less="positive, orthogonal",
        more="trigonometric, orthogonal",
        field="small_entries",
    ),
    Claim(
        says="the same, of the largest tenth of attention",
        less="positive, orthogonal",
        more="trigonometric, orthogonal",
        field="large_entries",
        made=False,
    ),
)


def logs(rows: Sequence[Row], estimator: str, features: int, field: str = "mse") -> dict[int, float]:
    """draw -> log of the error."""
    return {
        row["draw"]: math.log(row[field])
        for row in rows
        if (row["estimator"], row["features"]) == (estimator, features)
    }


def interval(values: Sequence[float]) -> tuple[float, float, float]:
    """The geometric mean and its 95% interval, from logarithms; of one value a point."""
    mean, width = sum(values) / len(values), half_width(values) or 0.0
    return math.exp(mean), math.exp(mean - width), math.exp(mean + width)


def errors(rows: Sequence[Row]) -> Sheet:
    """A row for each estimator, a column for each number of features."""
    numbers, draws = _features(rows), len({row["draw"] for row in rows})

    def cell(estimator: str, m: int) -> str:
        mean, low, high = interval(list(logs(rows, estimator, m).values()))
        return f"{mean:.2g} [{low:.2g}, {high:.2g}]"

    spread = rows[0].get("spread", 1.0)  # records from before it could be set
    return Sheet(
        title="Error of the output by number of features",
        columns=(Column("features", "words"), *(Column(f"m = {m}") for m in numbers)),
        rows=tuple((name, *(cell(name, m) for m in numbers)) for name in _estimators(rows)),
        notes=(
            f"Entries of queries and keys are normal with a standard deviation of {spread:g}.",
            f"Mean square of the difference to exact attention: geometric mean of {draws} draws with its 95% "
            f"t interval, for a few draws of the trigonometric estimate are off by orders of magnitude.",
            "A trigonometric estimate keeps a sine and a cosine of each of the m directions.",
        ),
    )


def claims(rows: Sequence[Row]) -> Sheet:
    """The paired comparisons of the paper's claims, and a verdict on each at each number of features."""
    found, p = {}, {}
    for n, claim in enumerate(CLAIMS):
        for m in _features(rows):
            less, more = (logs(rows, name, m, claim.field) for name in (claim.less, claim.more))
            key = f"{n} {m}"
            found[key] = claim, m, interval([less[draw] - more[draw] for draw in less])
            value = paired_p(less, more)
            if value is not None:
                p[key] = value
    p = holm(p)
    lines = tuple(
        (
            claim.says,
            str(m),
            f"{ratio:.2g} [{low:.2g}, {high:.2g}]",
            f"{p[key]:.1g}" if key in p else "–",
            verdict(ratio, p.get(key)) if claim.made else NOT_CLAIMED,
        )
        for key, (claim, m, (ratio, low, high)) in found.items()
    )
    return Sheet(
        title="The claims",
        columns=(
            Column("claim", "words"),
            Column("m"),
            Column("ratio of errors"),
            Column("p"),
            Column("verdict", "words"),
        ),
        rows=lines,
        notes=(
            "Ratio: geometric mean over draws of the first error to the second of the same draw, with its "
            "95% t interval; below 1 the claim holds.",
            "p: paired t-test on the logarithms, Holm-corrected over all rows; needs five draws.",
            f"Verdict: reproduced, or did not reproduce, where p is below {LEVEL}, by the side of 1.",
            "Of the largest tenth the source claims less, so there is no verdict.",
            "Of attention: the median over its entries of |Â − A| / A, in the rows of 64 queries.",
            "The source (arXiv:2009.14794, Figure 4) states the claims and draws curves, without numbers.",
        ),
    )


def ranking(rows: Sequence[Row]) -> str:
    """The error of each estimator with the most features, the smallest first."""
    m = _features(rows)[-1]
    means = {name: interval(list(logs(rows, name, m).values()))[0] for name in _estimators(rows)}
    return f"mean square error at m = {m}: " + ", ".join(
        f"{name.replace(', ', ' ')} {means[name]:.2g}" for name in sorted(means, key=lambda name: means[name])
    )


def judged(rows: Sequence[Row]) -> str:
    """How often each verdict was passed, the most frequent first."""
    words = Counter(row[-1] for row in claims(rows).rows if row[-1] != NOT_CLAIMED)
    return ", ".join(f"{n} {word}" for word, n in words.most_common())


def verdict(ratio: float, p: float | None) -> str:
    if p is None or p >= LEVEL:
        return "inconclusive"
    return "reproduced" if ratio < 1 else "did not reproduce"


def draw(axes: Axes, rows: Sequence[Row]) -> None:
    """The error against the number of features, with intervals."""
    numbers = _features(rows)
    for name, look in zip(_estimators(rows), plots.looks(), strict=False):
        points = [interval(list(logs(rows, name, m).values())) for m in numbers]
        means, lows, highs = zip(*points, strict=True)
        axes.plot(numbers, means, "o", **look, label=name, markersize=4)
        axes.fill_between(numbers, lows, highs, color=look["color"], alpha=0.15)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xticks(numbers, [str(m) for m in numbers])
    axes.minorticks_off()
    axes.set_xlabel("number of features m")
    axes.set_ylabel("mean square error of the output")
    axes.legend(loc="center left", bbox_to_anchor=(1, 0.5), fontsize=8)


def _features(rows: Sequence[Row]) -> list[int]:
    return sorted({row["features"] for row in rows})


def _estimators(rows: Sequence[Row]) -> list[str]:
    return list(dict.fromkeys(row["estimator"] for row in rows))
