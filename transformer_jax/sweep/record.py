"""What is written of a sweep beside its results: what it is, for the report; and whose directory it is."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from transformer_jax import overrides
from transformer_jax.errors import BadInput
from transformer_jax.experiment import GRIDS, Experiment
from transformer_jax.store import writable
from transformer_jax.sweep.cells import Cell, first_runs, numbers
from transformer_jax.train.run import ELSEWHERE, Run, digest, resolved, versions, write_json

RECORD = "experiment.json"

# What two configurations may differ in and still be comparable: when we look, what we keep, how the
# same numbers are computed. Rates and weight decays are compared as grids.
IMMATERIAL = {
    "seed",
    "task.version",
    "task.validation_examples",
    "task.test_examples",
    "model.remat",
    "train.learning_rate",
    "train.weight_decay",
    "train.accumulate",
    "train.evaluate_every",
    "train.evaluation_batch",
    "train.evaluation_examples",
    "train.save_every",
    "train.keep",
    "train.log_every",
    "train.steps_per_dispatch",
}


def describe(
    experiment: Experiment, cells: Sequence[Cell], published: Experiment | None = None
) -> dict[str, Any]:
    """What the report needs to know, as JSON values."""
    runs = {label: _settings(run) for label, run in first_runs(experiment).items()}
    table = experiment.published
    return {
        "title": experiment.title,
        "claim": experiment.claim,
        "metric": experiment.task.metric,
        "length": experiment.task.length,
        "digest": _digest(cells),
        "tune": dataclasses.asdict(experiment.tune),
        "variants": [
            {"label": v.label, "mechanisms": list(v.mechanisms), "settings": dict(v.settings)}
            for v in experiment.variants
        ],
        "settings": runs,
        "published": None if table is None else dataclasses.asdict(table),
        "departures": {} if table is None else departures(experiment, published),
        "cells": [
            {
                "label": cell.label,
                "learning_rate": cell.run.train.learning_rate,
                "weight_decay": cell.run.train.weight_decay,
                "seed": cell.run.seed,
                "directory": cell.directory,
                "digest": digest(cell.run),
            }
            for cell in cells
        ],
        "versions": versions(),
    }


def departures(experiment: Experiment, published: Experiment | None) -> dict[str, list[str]]:
    """label -> how the configuration differs from the published one; no entry where it does not."""
    labels = [variant.label for variant in experiment.variants]
    if published is None:
        return {label: ["the published setting is none of this experiment's scales"] for label in labels}
    theirs = first_runs(published)
    found: dict[str, list[str]] = {}
    for label, run in first_runs(experiment).items():
        if label not in theirs:
            found[label] = ["the published configuration has no such variant"]
            continue
        changed = [
            f"{name} is {_show(new)}, published with {_show(old)}"
            for name, old, new in overrides.differences(_settings(theirs[label]), _settings(run))
            if name not in IMMATERIAL and not name.startswith(ELSEWHERE)
        ]
        for name in sorted(GRIDS.keys() & IMMATERIAL):
            ours, grid = (_tried(each, label, name) for each in (experiment, published))
            if ours != grid:
                what = name.removeprefix("train.").replace("_", " ")
                changed.append(f"{what}s {_show(ours)}, published with {_show(grid)}")
        if changed:
            # The budget first: it is what a reader asks for.
            found[label] = sorted(changed, key=lambda sentence: not sentence.startswith("train.steps"))
    return found


def _tried(experiment: Experiment, label: str, name: str) -> tuple[float, ...]:
    (variant,) = (variant for variant in experiment.variants if variant.label == label)
    return numbers(experiment, variant, name)


def _settings(run: Run) -> dict[str, Any]:
    return json.loads(json.dumps(resolved(run)))


def _digest(cells: Sequence[Cell]) -> str:
    parts = sorted((cell.label, digest(cell.run)) for cell in cells)
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:20]


def admit(out: Path, record: Mapping[str, Any]) -> None:
    """Raises BadInput, and writes nothing, where `out` holds anything but this sweep or cannot be used."""
    try:
        if not out.exists():
            return
        if not out.is_dir():
            raise BadInput(f"{out} is a file: choose another --out.")
        if not writable(out):
            raise BadInput(f"Cannot write to {out}: choose another --out, or change its permissions.")
        if not (out / RECORD).is_file():
            if any(out.iterdir()):
                raise BadInput(f"{out} holds files but no {RECORD}: choose an empty or new --out.")
            return
        stored = json.loads((out / RECORD).read_text())
        if stored["digest"] == record["digest"]:
            return
    except BadInput:
        raise
    except OSError as error:
        raise BadInput(f"Cannot use {out} ({error.strerror}): choose another --out.") from None
    except (ValueError, KeyError):
        raise BadInput(f"{out / RECORD} cannot be read: move {out} away, or choose another --out.") from None
    parts = ("settings", "tune")
    old, new = ({part: dict(source.get(part, {})) for part in parts} for source in (stored, record))
    for source in (old, new):
        source["tune"] = {name: values for name, values in source["tune"].items() if values}
    changed = [
        f"variant {label} is only {where}"
        for where, mine, other in (("there", old, new), ("here", new, old))
        for label in sorted(mine["settings"].keys() - other["settings"].keys())
    ]
    for source, other in ((old, new), (new, old)):
        source["settings"] = {k: v for k, v in source["settings"].items() if k in other["settings"]}
    changed += [
        f"{name.removeprefix('settings.')} is {_show(was)} there and {_show(now)} here"
        for name, was, now in overrides.differences(old, json.loads(json.dumps(new)))
        if not any(f".{elsewhere}" in name for elsewhere in ELSEWHERE)
    ]
    what = "; ".join(changed[:3]) or "other data"
    more = f"; and {len(changed) - 3} more" if len(changed) > 3 else ""
    raise BadInput(
        f"{out} holds results of another configuration ({what}{more}): choose another --out, or move it away."
    )


def begin(out: Path, record: Mapping[str, Any]) -> None:
    try:
        (out / "cells").mkdir(parents=True, exist_ok=True)
        write_json(out / RECORD, record)
    except OSError as error:
        raise BadInput(f"Cannot write to {out} ({error.strerror}): choose another --out.") from None


def _show(value: Any) -> str:
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    if isinstance(value, tuple | list):
        return ", ".join(map(_show, value)) or "none"
    return f"{value:g}" if isinstance(value, float) else json.dumps(value)
