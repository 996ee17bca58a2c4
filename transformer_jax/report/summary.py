"""One variant of a sweep, summed up: its best learning rate, its scores, its window, its verdicts."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from transformer_jax.report.results import STATUSES, Cell, Results
from transformer_jax.report.statistics import ENOUGH_SEEDS, holm, paired_p, spread
from transformer_jax.report.verdict import Verdict, judge

WINDOW = 0.9
"""A learning rate counts as working where its validation score reaches this share of the variant's best."""


COUNTED = ("parameters", "state_size", "state_bytes", "flops", "temporaries")
SIGNIFICANT = 0.05


@dataclass(frozen=True, kw_only=True)
class Rate:
    """A learning rate of a variant. `validation` is the mean over its finished seeds, None for none."""

    learning_rate: float
    cells: tuple[Cell, ...]
    validation: float | None
    works: bool


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What a variant costs; None where the run does not say.

    parameters, state_size: numbers. state_bytes: of a sequence while decoding at full length. flops: of a
    training step, over all devices. temporaries: bytes of the training program on a device. steps_per_s: the
    median over seeds. data_wait: the largest share, over seeds, of the time in steps that waited for data.
    """

    parameters: int | None = None
    state_size: int | None = None
    state_bytes: int | None = None
    flops: int | None = None
    temporaries: int | None = None
    steps_per_s: float | None = None
    data_wait: float | None = None

    @property
    def step_ms(self) -> float | None:
        return 1e3 / self.steps_per_s if self.steps_per_s else None


@dataclass(frozen=True, kw_only=True)
class Summary:
    """A variant at its best learning rate, chosen on validation.

    Where several weight decays were tried, everything but `counts` is of the one of the best pair.
    """

    label: str
    rates: tuple[Rate, ...]
    best: Rate | None
    scores: Mapping[str, Mapping[int, float]]
    """test set -> seed -> metric, at the best rate."""
    counts: Mapping[str, int]
    cost: Cost
    steps: int | None
    notes: tuple[str, ...]
    verdicts: Mapping[str, Verdict]
    """test set -> our number against the published one, where there is one."""

    @property
    def window(self) -> str:
        return f"{sum(rate.works for rate in self.rates)} of {len(self.rates)}"


def summarize(results: Results) -> list[Summary]:
    """A summary for each variant, in the experiment's order."""
    return [_variant(results, label) for label in results.labels]


def p_values(summaries: list[Summary]) -> dict[str, float]:
    """label -> p against the first variant, paired by seed, Holm-corrected; {} below five seeds."""
    first = summaries[0].scores.get("test", {})
    raw = {s.label: paired_p(s.scores.get("test", {}), first) for s in summaries[1:]}
    return holm({label: p for label, p in raw.items() if p is not None})


def standing(results: Results, summaries: list[Summary]) -> dict[str, str]:
    """label -> "best", or how it stands to the best by mean test score; those clearly behind have no entry.

    From five seeds on a variant is "not distinguishable" where its paired test against the best, corrected
    for all such comparisons, has p of at least SIGNIFICANT; below, its range overlaps that of the best.
    """
    scores = {s.label: s.scores.get("test", {}) for s in summaries if s.scores.get("test")}
    if len(scores) < 2:
        return {}
    sign = 1 if results.higher_is_better else -1
    best = max(scores, key=lambda label: sign * spread(list(scores[label].values())).mean)
    others = {label: found for label, found in scores.items() if label != best}
    raw = {label: paired_p(found, scores[best]) for label, found in others.items()}
    p = holm({label: value for label, value in raw.items() if value is not None})
    stands = {best: "best"}
    for label, found in others.items():
        if label in p:
            if p[label] >= SIGNIFICANT:
                stands[label] = "not distinguishable"
        elif min(found.values()) <= max(scores[best].values()) and min(scores[best].values()) <= max(
            found.values()
        ):
            stands[label] = "range overlaps"
    return stands


def remarks(results: Results, summaries: list[Summary]) -> list[str]:
    """What the reader must know before believing the table."""
    experiment, said = results.experiment, []
    counts = Counter(cell.status for cell in results.cells)
    if counts["unfinished"]:
        said.append(f"Partial: {counts['unfinished']} of {len(results.cells)} runs have not finished yet.")
    for word in ("diverged", "failed"):
        for cell in (c for c in results.cells if c.status == word):
            why = cell.result.get("message", "")
            said.append(
                f"{cell.label}, rate {cell.learning_rate:g}, seed {cell.seed} {word}: {why}".rstrip(": ")
            )
    if len({len(summary.rates) for summary in summaries}) > 1:
        said.append("The tuning budget differs between the variants: " + _budgets(summaries))
    seeds = max(len(rate.cells) for summary in summaries for rate in summary.rates)
    if seeds < ENOUGH_SEEDS:
        shown = "One seed, shown as a point" if seeds == 1 else f"{seeds} seeds, shown as points and range"
        said.append(f"{shown}; intervals and tests need {ENOUGH_SEEDS}.")
    for summary in summaries:
        said += [f"{summary.label}: {note}" for note in summary.notes]
    published = experiment.get("published")
    if published:
        said += [f"{label} ({published['source']}): {note}" for label, note in published["notes"].items()]
    return said


def _budgets(summaries: list[Summary]) -> str:
    counts = [(summary.label, len(summary.rates)) for summary in summaries]
    return ", ".join(f"{label} {n} rate{'s' * (n != 1)}" for label, n in counts) + "."


def _variant(results: Results, label: str) -> Summary:
    every = results.of(label)
    cells, decay = _at_best_decay(results, every)
    means = {rate: _validation(results, cells, rate) for rate in sorted({c.learning_rate for c in cells})}
    known = {rate: mean for rate, mean in means.items() if mean is not None}
    sign = 1 if results.higher_is_better else -1

    def standing(rate: float) -> tuple[int, float]:
        # A rate that lost a seed is behind every rate that kept them all.
        finished = sum(c.done for c in cells if c.learning_rate == rate)
        return finished, sign * known[rate]

    chosen = max(known, key=standing) if known else None
    limit = known[chosen] * (WINDOW if sign > 0 else 1 / WINDOW) if chosen is not None else 0.0
    rates = tuple(
        Rate(
            learning_rate=rate,
            cells=tuple(c for c in cells if c.learning_rate == rate),
            validation=mean,
            works=mean is not None and sign * mean >= sign * limit,
        )
        for rate, mean in means.items()
    )
    best = next((rate for rate in rates if rate.learning_rate == chosen), None)
    scores = {test: _scores(best, test, results.metric) for test in ("test", *results.tests)} if best else {}
    ran = [cell.result for cell in (best.cells if best else ()) if cell.done]
    speeds = [run["steps_per_s"] for run in ran if run.get("steps_per_s")]
    notes = {
        f"{name}: {note}" if name != label else note for r in ran for name, note in r.get("notes", {}).items()
    }
    return Summary(
        label=label,
        rates=rates,
        best=best,
        scores=scores,
        counts={status: n for status in STATUSES if (n := sum(c.status == status for c in every))},
        cost=Cost(
            **{name: next((run.get(name) for run in ran), None) for name in COUNTED},
            steps_per_s=float(np.median(speeds)) if speeds else None,
            data_wait=max((run["data_wait"] for run in ran if "data_wait" in run), default=None),
        ),
        steps=max((run["step"] for run in ran if "step" in run), default=None),
        notes=(*sorted(notes), *decay),
        verdicts=_verdicts(results, label, rates, best, scores),
    )


def _at_best_decay(results: Results, cells: list[Cell]) -> tuple[list[Cell], tuple[str, ...]]:
    """The cells with the weight decay of the best pair of it and a learning rate, and which it was."""
    decays = sorted({cell.weight_decay for cell in cells if cell.weight_decay is not None})
    if len(decays) < 2:
        return cells, ()
    sign = 1 if results.higher_is_better else -1

    def standing(decay: float) -> tuple[int, float]:
        mine = [cell for cell in cells if cell.weight_decay == decay]
        return max(
            (sum(c.done for c in mine if c.learning_rate == rate), -math.inf if mean is None else sign * mean)
            for rate in {cell.learning_rate for cell in mine}
            for mean in [_validation(results, mine, rate)]
        )

    best = max(decays, key=standing)
    said = f"weight decay {best:g}, the best of {', '.join(f'{decay:g}' for decay in decays)}"
    return [cell for cell in cells if cell.weight_decay == best], (said,)


def _validation(results: Results, cells: list[Cell], rate: float) -> float | None:
    found = [c.score("validation", results.metric) for c in cells if c.learning_rate == rate]
    finite = [score for score in found if score is not None]
    return spread(finite).mean if finite else None


def _scores(rate: Rate, test: str, metric: str) -> dict[int, float]:
    found = {cell.seed: cell.score(test, metric) for cell in rate.cells}
    return {seed: score for seed, score in sorted(found.items()) if score is not None}


def _verdicts(
    results: Results, label: str, rates: tuple[Rate, ...], best: Rate | None, scores: Mapping[str, Any]
) -> dict[str, Verdict]:
    published = results.experiment.get("published")
    rows = {
        row: values for row, values in (published or {"rows": {}})["rows"].items() if row in results.labels
    }
    departures = list(results.experiment.get("departures", {}).get(label, ()))
    lost = sum(not cell.done for cell in best.cells) if best else 0
    if lost:
        departures.append(
            f"{lost} of {len(best.cells)} seeds did not finish, and a mean of the rest flatters"
        )
    if published and published["selection"] == "best of grid" and len(rates) < 2:
        departures.append("the published number is the best of several learning rates, ours had one")
    if published and published["selection"] == "one recipe" and len(rates) > 1:
        departures.append(f"the published number is of one learning rate, ours the best of {len(rates)}")
    verdicts = {}
    for test, value in rows.get(label, {}).items():
        if test not in scores:
            continue
        others = [values[test] for values in rows.values() if test in values]
        gap = max(others) - min(others)
        verdicts[test] = judge(
            list(scores[test].values()),
            value,
            precision=published["precision"],
            gap=gap or None,
            departures=departures,
        )
    return verdicts
