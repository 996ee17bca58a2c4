"""Variants × learning rates × seeds: every cell a run; finished ones are kept, the others continue."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from transformer_jax import overrides
from transformer_jax.data import builders
from transformer_jax.data.pipeline import evaluation_batches
from transformer_jax.errors import BadInput
from transformer_jax.experiment import Experiment, Variant, slug
from transformer_jax.measure.step_cost import step_cost
from transformer_jax.parallel.group import agreed, first
from transformer_jax.parallel.mesh import on
from transformer_jax.store import writable
from transformer_jax.train import loop
from transformer_jax.train.devices import mesh_of
from transformer_jax.train.run import MESH, Run, build_model, digest, resolved, versions, write_json

RECORD = "experiment.json"
FAILED = "failed.json"

# What two configurations may differ in and still be comparable: when we look, what we keep, how the
# same numbers are computed. Rates are compared as a grid.
IMMATERIAL = {
    "seed",
    "task.version",
    "task.validation_examples",
    "task.test_examples",
    "model.remat",
    "train.learning_rate",
    "train.accumulate",
    "train.evaluate_every",
    "train.evaluation_batch",
    "train.evaluation_examples",
    "train.save_every",
    "train.keep",
    "train.log_every",
    "train.steps_per_dispatch",
}


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One run of the sweep, and where its files go."""

    label: str
    run: Run

    @property
    def name(self) -> str:
        return f"{self.label}, rate {self.run.train.learning_rate:g}, seed {self.run.seed}"

    @property
    def directory(self) -> str:
        return f"cells/{slug(self.label)}_rate{self.run.train.learning_rate:g}_seed{self.run.seed}"


def plan(experiment: Experiment) -> tuple[Cell, ...]:
    """Every cell. The first seed of everything comes first, so that an early report compares all variants."""
    cells = tuple(
        Cell(label=variant.label, run=run)
        for seed in range(experiment.tune.seeds)
        for variant in experiment.variants
        for run in _runs(experiment, variant, seed)
    )
    seen: dict[str, Cell] = {}
    for cell in cells:
        other = seen.setdefault(cell.directory, cell)
        if other is not cell:
            raise BadInput(
                f"The runs {other.name!r} and {cell.name!r} would share the directory {cell.directory}: "
                f"give one of the variants another label."
            )
    return cells


def validate(cells: Sequence[Cell], data: Path) -> None:
    """Builds every model and runs it abstractly on the task's own input, so that nothing is half run.

    Raises BadInput where the data are missing or a variant is not defined for what the task asks.
    """
    task = cells[0].run.task
    for split in ("train", "validation", "test"):
        if split != "train" or not task.endless:
            builders.read(task, split, data)
    batch = next(evaluation_batches(task, "validation", batch=1, directory=data, limit=1))
    tokens = jnp.asarray(batch["inputs"])
    layout = {name: jnp.asarray(batch[name]) for name in ("lengths", "segments") if name in batch}
    checked = set()
    for cell in cells:
        if cell.label not in checked:
            checked.add(cell.label)
            try:
                with on(mesh_of(cell.run)):
                    jax.eval_shape(lambda run=cell.run: build_model(run)(tokens, **layout)[0])
            except BadInput as error:
                raise BadInput(f"Variant {cell.label!r}: {error}") from None


def sweep(
    experiment: Experiment,
    out: Path,
    *,
    data: Path,
    about: Mapping[str, Any],
    published: Experiment | None = None,
    say: Callable[[str], None] = print,
) -> list[dict[str, Any]]:
    """Runs every cell that has not finished; a cell that fails is recorded and the sweep goes on.

    Args:
      experiment: at its scale, with the command line's overrides.
      out: where the results go; that of an earlier call with the same configuration is continued.
      data: where finite splits are kept.
      about: what the report shows of the experiment: name, scale, doc, command.
      published: the same experiment as the published numbers were made.
      say: where progress goes, a sentence at a time.

    Of several processes all call it; the first writes and speaks.

    Returns the result of each cell. Raises BadInput, before anything has run, where a cell cannot run
    or `out` holds something else.
    """
    cells = plan(experiment)
    record = {**about, **describe(experiment, cells, published)}
    agreed(lambda: _admit(out, record))
    agreed(lambda: validate(cells, data))  # the first process writes the data, where the others may find them
    validate(cells, data)
    agreed(lambda: _begin(out, record))
    say = say if first() else lambda sentence: None
    say(_opening(experiment, cells, out))
    seconds: dict[Cell, float] = {}
    results = []
    for number, cell in enumerate(cells, start=1):
        began, kept = time.monotonic(), agreed(functools.partial(_finished, cell, out))
        result = _run(cell, out / cell.directory, data, about.get("command"))
        results.append(result)
        seconds[cell] = result.get("seconds", 0.0) if kept else time.monotonic() - began
        left = remaining([cell for cell in cells[number:] if not _finished(cell, out)], seconds)
        say(
            f"[{number}/{len(cells)}] {cell.name}: {_outcome(result, experiment.task.metric)}"
            + (", kept" if kept else f", {duration(seconds[cell])}")
            + (f"; about {duration(left)} left" if left else "")
        )
    return results


def describe(
    experiment: Experiment, cells: Sequence[Cell], published: Experiment | None = None
) -> dict[str, Any]:
    """What the report needs to know, as JSON values."""
    runs = {label: _settings(run) for label, run in _first_runs(experiment).items()}
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
    theirs = _first_runs(published)
    found: dict[str, list[str]] = {}
    for label, run in _first_runs(experiment).items():
        if label not in theirs:
            found[label] = ["the published configuration has no such variant"]
            continue
        changed = [
            f"{name} is {_show(new)}, published with {_show(old)}"
            for name, old, new in overrides.differences(_settings(theirs[label]), _settings(run))
            if name not in IMMATERIAL and not name.startswith(MESH)
        ]
        ours, grid = _rates(experiment, label), _rates(published, label)
        if ours != grid:
            changed.append(f"learning rates {_show(ours)}, published with {_show(grid)}")
        if changed:
            # The budget first: it is what a reader asks for.
            found[label] = sorted(changed, key=lambda sentence: not sentence.startswith("train.steps"))
    return found


def remaining(left: Sequence[Cell], seconds: Mapping[Cell, float]) -> float | None:
    """Seconds for the cells that are left, from those that ended: of the same variant, else per step."""
    known = {cell: s for cell, s in seconds.items() if s > 0}
    if not left or not known:
        return None
    per_step = sum(known.values()) / sum(cell.run.train.steps for cell in known)
    total = 0.0
    for cell in left:
        same = [s for other, s in known.items() if other.label == cell.label]
        total += sum(same) / len(same) if same else per_step * cell.run.train.steps
    return total


def duration(seconds: float) -> str:
    """A time in words."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def _runs(experiment: Experiment, variant: Variant, seed: int) -> Iterator[Run]:
    model, train = variant.resolve(experiment.model, experiment.train)
    for rate in _rates(experiment, variant.label):
        recipe = dataclasses.replace(train, learning_rate=rate)
        yield Run(task=experiment.task, model=model, train=recipe, seed=seed)


def _rates(experiment: Experiment, label: str) -> tuple[float, ...]:
    """The rates of a variant: its own one, or the grid, or that of the training."""
    variant = next(variant for variant in experiment.variants if variant.label == label)
    own = dict(variant.settings).keys() & {"learning_rate", "train.learning_rate"}
    if not own and experiment.tune.learning_rate:
        return experiment.tune.learning_rate
    return (variant.resolve(experiment.model, experiment.train)[1].learning_rate,)


def _first_runs(experiment: Experiment) -> dict[str, Run]:
    return {variant.label: next(_runs(experiment, variant, 0)) for variant in experiment.variants}


def _settings(run: Run) -> dict[str, Any]:
    return json.loads(json.dumps(resolved(run)))


def _digest(cells: Sequence[Cell]) -> str:
    parts = sorted((cell.label, digest(cell.run)) for cell in cells)
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:20]


def _admit(out: Path, record: Mapping[str, Any]) -> None:
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
        if f".{MESH}" not in name
    ]
    what = "; ".join(changed[:3]) or "other data"
    more = f"; and {len(changed) - 3} more" if len(changed) > 3 else ""
    raise BadInput(
        f"{out} holds results of another configuration ({what}{more}): choose another --out, or move it away."
    )


def _begin(out: Path, record: Mapping[str, Any]) -> None:
    try:
        (out / "cells").mkdir(parents=True, exist_ok=True)
        write_json(out / RECORD, record)
    except OSError as error:
        raise BadInput(f"Cannot write to {out} ({error.strerror}): choose another --out.") from None


def _run(cell: Cell, directory: Path, data: Path, command: str | None) -> dict[str, Any]:
    """The cell's result; a failure is recorded in its directory and tried again by the next call.

    Of several processes, the failure of one is the end of all: they were in the middle of something together.
    """
    failure = directory / FAILED
    try:
        if first():
            failure.unlink(missing_ok=True)
        return loop.train(cell.run, directory, data=data, label=cell.name, command=command, cost=step_cost)
    except BadInput:
        raise
    except Exception as error:
        if jax.process_count() > 1:
            raise
        message = " ".join(str(error).split()) or type(error).__name__
        result = {
            "status": "failed",
            "message": f"{type(error).__name__}: {message[:500]}",
            "traceback": traceback.format_exc(),
        }
        directory.mkdir(parents=True, exist_ok=True)
        write_json(failure, result)
        return result


def _finished(cell: Cell, out: Path) -> bool:
    return (out / cell.directory / "result.json").is_file()


def _opening(experiment: Experiment, cells: Sequence[Cell], out: Path) -> str:
    kept = sum(_finished(cell, out) for cell in cells)
    already = f", {kept} of them finished" if kept else ""
    variants, seeds = len(experiment.variants), experiment.tune.seeds
    return f"{experiment.title}: variants {variants}, seeds {seeds}, runs {len(cells)}{already}, into {out}"


def _outcome(result: Mapping[str, Any], metric: str) -> str:
    score = result.get("metrics", {}).get("validation", {}).get(metric)
    said = [result["status"]]
    if result.get("step") is not None:
        said.append(f"at step {result['step']:,}")
    if score is not None:
        said.append(f"with validation {metric.replace('_', ' ')} {score:.3f}")
    if result.get("message"):
        said.append(f"({result['message']})")
    return " ".join(said)


def _show(value: Any) -> str:
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    if isinstance(value, tuple | list):
        return ", ".join(map(_show, value)) or "none"
    return f"{value:g}" if isinstance(value, float) else json.dumps(value)
