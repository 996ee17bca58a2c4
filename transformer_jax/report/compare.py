"""Two directories of results side by side: their scores, and what differs in how they were had."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from transformer_jax.overrides import differences
from transformer_jax.report.results import Results
from transformer_jax.report.sheets import NOTHING, central, metric_name
from transformer_jax.report.statistics import ENOUGH_SEEDS, Spread, paired_spread
from transformer_jax.report.summary import summarize
from transformer_jax.report.table import Column, Sheet

ALL = "all"


def compared(old: Results, new: Results) -> list[Sheet]:
    """The scores of both, and the settings, versions and devices in which they differ."""
    return [scores(old, new), settings(old, new)]


def differences_in_scores(old: Results, new: Results) -> Iterator[tuple[str, str, Any, Any, Spread | None]]:
    """(variant, test set, old scores by seed, new ones, their differences new − old) of what both have."""
    if old.metric != new.metric:
        return
    before = {summary.label: summary for summary in summarize(old)}
    for summary in summarize(new):
        for test, ours in summary.scores.items():
            theirs = before[summary.label].scores.get(test, {}) if summary.label in before else {}
            if ours and theirs:
                yield summary.label, test, theirs, ours, paired_spread(ours, theirs)


def scores(old: Results, new: Results) -> Sheet:
    """A row for each variant and test set that both have, each at its own best learning rate."""
    first, second = names(old, new)
    rows = tuple(
        (label, test, central(theirs), central(ours), _difference(spread))
        for label, test, theirs, ours, spread in differences_in_scores(old, new)
    )
    notes = [
        f"Difference: {second} − {first}, paired by seed; with the 95% t interval from {ENOUGH_SEEDS} common "
        f"seeds on, below with the range over them."
    ]
    if old.metric != new.metric:
        notes = [f"Nothing to compare: {first} measures {old.metric}, {second} {new.metric}."]
    for one, other, name in ((old, new, first), (new, old, second)):
        if alone := [label for label in one.labels if label not in other.labels]:
            notes.append(f"Only in {name}: {', '.join(alone)}.")
    return Sheet(
        title=f"{second} beside {first}: {metric_name(new)}",
        columns=(
            Column("variant", "words"),
            Column("test set", "words"),
            Column(first),
            Column(second),
            Column("difference"),
        ),
        rows=rows,
        notes=tuple(notes),
    )


def settings(old: Results, new: Results) -> Sheet:
    """Every setting that differs, by its dotted name; once, where it differs so in every variant."""
    first, second = names(old, new)
    found: dict[tuple[str, str, str], list[str]] = {}
    common = [label for label in new.labels if label in old.labels]
    for label in common:
        for name, was, now in differences(_settings(old, label), _settings(new, label)):
            found.setdefault((name, _shown(was), _shown(now)), []).append(label)
    rows = [
        (name, ALL if labels == common else ", ".join(labels), was, now)
        for (name, was, now), labels in sorted(found.items())
    ]
    rows += [
        (name, ALL, _shown(was), _shown(now)) for name, was, now in differences(_about(old), _about(new))
    ]
    return Sheet(
        title=f"What differs between {first} and {second}",
        columns=(
            Column("setting", "words"),
            Column("variants", "words"),
            Column(first, "words"),
            Column(second, "words"),
        ),
        rows=tuple(rows),
        notes=() if rows else ("Nothing: the same settings, versions and devices.",),
    )


def names(old: Results, new: Results) -> tuple[str, str]:
    """What the two are called: their directories' names, or their paths where these are the same."""
    first, second = old.directory.name, new.directory.name
    return (first, second) if first != second else (str(old.directory), str(new.directory))


def _settings(results: Results, label: str) -> Mapping[str, Any]:
    """Of the variant's first run, without what a sweep tries several of."""
    kept = json.loads(json.dumps(results.experiment.get("settings", {}).get(label, {})))
    kept.get("train", {}).pop("learning_rate", None)
    kept.pop("seed", None)
    return kept


def _about(results: Results) -> dict[str, Any]:
    versions: dict[str, set[str]] = {}
    for found in results.versions():
        for library, version in found:
            versions.setdefault(library, set()).add(version)
    return {
        "device": ", ".join(results.devices()),
        "tune": results.experiment.get("tune", {}),
        "versions": {library: ", ".join(sorted(some)) for library, some in versions.items()},
    }


def _difference(spread: Spread | None) -> str:
    if spread is None:
        return NOTHING
    if spread.half_width is not None:
        return f"{spread.mean:+.3f} ± {spread.half_width:.3f}"
    return f"{spread.mean:+.3f}" + (f" [{spread.low:+.3f}, {spread.high:+.3f}]" if spread.count > 1 else "")


def _shown(value: Any) -> str:
    if value is None:
        return NOTHING
    return (
        value if isinstance(value, str) else f"{value:g}" if isinstance(value, float) else json.dumps(value)
    )
