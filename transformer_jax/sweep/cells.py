"""The cells of a sweep: which runs it is, and where the files of each go."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from transformer_jax.errors import BadInput
from transformer_jax.experiment import GRIDS, Experiment, Variant, slug
from transformer_jax.train.loop import RESULT
from transformer_jax.train.run import Run


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One run of the sweep.

    Attributes:
      decays: whether its weight decay is one of several, and so part of its name.
    """

    label: str
    run: Run
    decays: bool = False

    @property
    def name(self) -> str:
        """As it stands in progress and report: "full, rate 0.001, decay 0.1, seed 0"."""
        return ", ".join([self.label, *map(" ".join, self._numbers())])

    @property
    def directory(self) -> str:
        return f"cells/{'_'.join([slug(self.label), *map(''.join, self._numbers())])}"

    def finished(self, out: Path) -> bool:
        """Whether its result is in `out`, the directory of the sweep."""
        return (out / self.directory / RESULT).is_file()

    def _numbers(self) -> list[tuple[str, str]]:
        train = self.run.train
        decay = [("decay", f"{train.weight_decay:g}")] if self.decays else []
        return [("rate", f"{train.learning_rate:g}"), *decay, ("seed", str(self.run.seed))]


def plan(experiment: Experiment) -> tuple[Cell, ...]:
    """Every cell of an experiment whose widths are settled (`transformer_jax.sweep.widths`).

    The first seed of everything comes first, so that an early report compares all variants.
    """
    cells = tuple(
        Cell(label=variant.label, run=run, decays=_several_decays(experiment, variant))
        for seed in range(experiment.tune.seeds)
        for variant in experiment.variants
        for run in runs(experiment, variant, seed)
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


def runs(experiment: Experiment, variant: Variant, seed: int) -> Iterator[Run]:
    """The runs of a variant with one seed: every rate with every weight decay."""
    model, train = variant.resolve(experiment.model, experiment.train)
    for rate in numbers(experiment, variant, "train.learning_rate"):
        for decay in numbers(experiment, variant, "train.weight_decay"):
            recipe = dataclasses.replace(train, learning_rate=rate, weight_decay=decay)
            yield Run(task=experiment.task, model=model, train=recipe, seed=seed)


def numbers(experiment: Experiment, variant: Variant, name: str) -> tuple[float, ...]:
    """What a variant is trained with in the place of `name`, a field of the training: its own value, or the
    grid, or that of the experiment."""
    grid = getattr(experiment.tune, GRIDS[name].removeprefix("tune."))
    if grid and not variant.own(name):
        return grid
    train = variant.resolve(experiment.model, experiment.train)[1]
    return (getattr(train, name.removeprefix("train.")),)


def first_runs(experiment: Experiment) -> dict[str, Run]:
    """label -> its first run."""
    return {variant.label: next(runs(experiment, variant, 0)) for variant in experiment.variants}


def _several_decays(experiment: Experiment, variant: Variant) -> bool:
    return bool(experiment.tune.weight_decay) and not variant.own("train.weight_decay")
