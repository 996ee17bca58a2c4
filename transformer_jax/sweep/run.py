"""Runs the cells of an experiment one after the other: finished ones are kept, the others continue.

Cells that differ only in rate, weight decay and seed run the same compiled program
(`transformer_jax.train.step.FREE`), so a grid is compiled once per variant and width.

They run in turn, not vmapped into one program: on 2 CPU cores that gains nothing at the size of the smallest
recall task. Time of a step of four cells, vmapped over in turn (medians of 7 interleaved rounds of 10 steps,
two layers without MLP, other work on the machine, 2026-11-25):

    length, width, batch   full   linear   gated_delta_net
    64, 64, 64             1.08   1.42     1.25
    64, 32, 64             1.16   1.09     1.10
    64, 16, 32             0.90   0.93     1.21
    32, 16, 8              0.66   0.82     0.87
    16, 8, 4               0.69   0.75     0.81

Below, a step takes a millisecond and compilation is what such a run costs; and a cell that is solved or
diverges would wait for the others. On an accelerator this is not measured.
"""

from __future__ import annotations

import functools
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from transformer_jax.data import builders
from transformer_jax.data.pipeline import evaluation_batches
from transformer_jax.errors import BadInput
from transformer_jax.experiment import Experiment
from transformer_jax.measure.step_cost import step_cost
from transformer_jax.parallel.group import agreed, first
from transformer_jax.parallel.mesh import on
from transformer_jax.sweep.cells import Cell, plan
from transformer_jax.sweep.progress import Ended, duration, opening, outcome, remaining
from transformer_jax.sweep.record import admit, begin, describe
from transformer_jax.sweep.widths import settled
from transformer_jax.train import loop
from transformer_jax.train.devices import mesh_of
from transformer_jax.train.run import build_model, write_json

FAILED = "failed.json"


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
    experiment, match = settled(experiment)
    cells = plan(experiment)
    record = {**about, **describe(experiment, cells, published and settled(published)[0]), "match": match}
    agreed(lambda: admit(out, record))
    agreed(lambda: validate(cells, data))  # the first process writes the data, where the others may find them
    validate(cells, data)
    agreed(lambda: begin(out, record))
    say = say if first() else lambda sentence: None
    for sentence in opening(experiment, cells, out, match):
        say(sentence)
    ended: dict[Cell, Ended] = {}
    results = []
    for number, cell in enumerate(cells, start=1):
        began, kept = time.monotonic(), agreed(functools.partial(cell.finished, out))
        result = _run(cell, out / cell.directory, data, about.get("command"))
        results.append(result)
        took = time.monotonic() - began
        if result["status"] != "failed":
            steps, speed = result.get("step", 0), result.get("steps_per_s", 0.0)
            # Of a cell that went on from a checkpoint `took` is the end alone.
            seconds = max(result.get("seconds", 0.0), 0.0 if kept else took)
            ended[cell] = Ended(seconds, steps, min(steps / speed, seconds) if speed else seconds)
        left = remaining([cell for cell in cells[number:] if not cell.finished(out)], ended)
        say(
            f"[{number}/{len(cells)}] {cell.name}: {outcome(result, experiment.task.metric)}"
            + (", kept" if kept else f", {duration(took)}")
            + (f"; {left}" if left else "")
        )
    return results


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
