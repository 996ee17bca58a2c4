"""What is said while a sweep runs: how far it is, how each cell ended, how long the rest will take."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from transformer_jax.experiment import Experiment
from transformer_jax.sweep.cells import Cell


class Ended(NamedTuple):
    """What a cell took: seconds in all, steps, fewer than planned where it was solved, and the seconds that
    these steps took alone, without compilation, evaluations and tests."""

    seconds: float
    steps: int
    training: float


class Left(NamedTuple):
    """Seconds that the rest of a sweep is guessed to take; `most` where a variant that never ran may be
    solved early, so that it is more likely too much than too little."""

    seconds: float
    most: bool

    def __str__(self) -> str:
        return f"{'at most ' if self.most else ''}about {duration(self.seconds)} left"


def remaining(left: Sequence[Cell], ended: Mapping[Cell, Ended]) -> Left | None:
    """What the cells that are left will take, from those that ended; None where nothing is known.

    The guess for a cell is the mean of its like: the same variant at the same rate and weight decay, else the
    same variant. One of a variant that never ran is taken to go through all of its steps, at the mean time of
    a step of the others, and to take beside them what the others took.
    """
    steps = sum(cell.steps for cell in ended.values())
    if not left or not steps:
        return None
    per_step = sum(cell.training for cell in ended.values()) / steps
    beside = sum(cell.seconds - cell.training for cell in ended.values()) / len(ended)
    total, most = 0.0, False
    for cell in left:
        alike = [took.seconds for other, took in ended.items() if _point(other) == _point(cell)]
        same = alike or [took.seconds for other, took in ended.items() if other.label == cell.label]
        total += sum(same) / len(same) if same else beside + per_step * cell.run.train.steps
        most = most or (not same and cell.run.train.stop_at is not None)
    return Left(total, most)


def duration(seconds: float) -> str:
    """A time in words."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def opening(
    experiment: Experiment, cells: Sequence[Cell], out: Path, match: Mapping[str, Any] | None
) -> list[str]:
    """The first lines: what will run, and at which widths where they were solved for."""
    kept = sum(cell.finished(out) for cell in cells)
    already = f", {kept} of them finished" if kept else ""
    variants, seeds = len(experiment.variants), experiment.tune.seeds
    said = [f"{experiment.title}: variants {variants}, seeds {seeds}, runs {len(cells)}{already}, into {out}"]
    if match:
        (reference, first), *others = match["variants"].items()
        found = ", ".join(f"{label} {each['width']} ({each['ratio']:.3f} of it)" for label, each in others)
        said.append(
            f"Widths for equal {match['what']}, {first['amount']:,.0f} of {reference} at {first['width']}: "
            f"{found or 'no other variant'}."
        )
    return said


def outcome(result: Mapping[str, Any], metric: str) -> str:
    """How a cell ended, in words."""
    score = result.get("metrics", {}).get("validation", {}).get(metric)
    said = [result["status"]]
    if result.get("step") is not None:
        said.append(f"at step {result['step']:,}")
    if score is not None:
        said.append(f"with validation {metric.replace('_', ' ')} {score:.3f}")
    if result.get("message"):
        said.append(f"({result['message']})")
    return " ".join(said)


def _point(cell: Cell) -> tuple[str, float, float]:
    return cell.label, cell.run.train.learning_rate, cell.run.train.weight_decay
