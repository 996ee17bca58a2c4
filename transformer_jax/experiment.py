"""What an experiment says: task, model, variants, budget, published numbers, three scales.

An experiment is one Python file that assigns `experiment = Experiment(...)`. A configuration is
made in four steps, each over the one before: the experiment's own fields, its scale, what a variant
says of itself, and what the command line says. Where nothing is trained, it is a `Measurement(...)`.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from transformer_jax import overrides
from transformer_jax.attention import catalogue
from transformer_jax.data.task import Task
from transformer_jax.errors import BadInput, unknown
from transformer_jax.model.config import Mechanism, Transformer
from transformer_jax.train.config import Train
from transformer_jax.tuning import Grid, Match
from transformer_jax.user_file import load_module

SCALES = ("smoke", "single", "paper")
PARTS = ("task", "model", "train", "tune", "match")
GRIDS = {
    "train.learning_rate": "tune.learning_rate",
    "train.weight_decay": "tune.weight_decay",
    "model.width": "tune.width",
}
"""What may be one value or a grid, and the name of the grid. A variant with a value of its own leaves it."""
FOLDER = "experiments"


@dataclass(frozen=True, kw_only=True)
class Table:
    """Published numbers, with the place where they stand.

    Attributes:
      source: the citation, such as "arXiv:2312.00752, Table 11".
      tag: how the numbers were had.
      precision: half of the last digit given, or the error of reading a figure, in units of the metric.
      rows: label of a variant -> test set ("test", or "test/<name>") -> the metric. A row whose label
        is no variant's is shown for orientation.
      selection: whether the source reports its best learning rate of several, or one recipe.
      comparable_at: the scales whose configuration is the published one. Where a run departs from the
        configuration of these, the report says "not comparable" and why.
      notes: label -> what the reader of that row must know.
    """

    source: str
    tag: Literal["exact", "read off a figure", "single source"]
    precision: float
    rows: Mapping[str, Mapping[str, float]]
    selection: Literal["best of grid", "one recipe"] = "one recipe"
    comparable_at: tuple[str, ...] = ("paper",)
    notes: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Override:
    """What a scale changes: field -> value, part by part; and other variants, where it has them."""

    task: Mapping[str, Any] = field(default_factory=dict)
    model: Mapping[str, Any] = field(default_factory=dict)
    train: Mapping[str, Any] = field(default_factory=dict)
    tune: Mapping[str, Any] = field(default_factory=dict)
    match: Mapping[str, Any] = field(default_factory=dict)
    variants: tuple[str | Variant, ...] | None = None


@dataclass(frozen=True, init=False)
class Variant:
    """One line of the comparison: a mechanism, or a pattern of them over the layers, and its own settings.

    `Variant("full", label="full, rotary", positions="rotary", width=32)`. A setting is an option of
    the mechanism, a field of the model or a field of the training, found by its name; where a name
    is two of them, write `**{"model.window": 8}`. `Variant(("gated_delta_net", "full"))` and
    `Variant("gated_delta_net+full")` are the same hybrid. "my.py:fading" is a mechanism of a user's file.
    """

    mechanisms: tuple[str, ...]
    label: str
    settings: tuple[tuple[str, Any], ...]

    def __init__(self, mechanisms: str | tuple[str, ...], label: str | None = None, **settings: Any):
        parts = mechanisms.split("+") if isinstance(mechanisms, str) else mechanisms
        names = tuple(_mechanism(part, mechanisms) for part in parts)
        object.__setattr__(self, "mechanisms", names)
        object.__setattr__(self, "label", label or "+".join(names))
        object.__setattr__(self, "settings", tuple(sorted(settings.items())))

    def resolve(self, model: Transformer, train: Train) -> tuple[Transformer, Train]:
        """Model and training with this variant's mechanisms and settings.

        Raises BadInput on an unknown or ambiguous setting and on a value of another type.
        """
        options = {name: catalogue.options(catalogue.find(name)) for name in self.mechanisms}
        chosen: dict[str, dict[str, Any]] = {"model": {}, "train": {}, **{name: {} for name in options}}
        homes = {
            **{name: set(known) for name, known in options.items()},
            "model": set(overrides.fields(model)) - {"mixers"},
            "train": set(overrides.fields(train)),
        }
        for setting, value in self.settings:
            home, _, name = setting.rpartition(".")
            if home and home not in homes:
                raise unknown(f"part of variant {self.label!r}", home, homes)
            owners = [home] if home else [part for part, names in homes.items() if name in names]
            if not owners or name not in homes[owners[0]]:
                raise unknown(f"setting of variant {self.label!r}", setting, set().union(*homes.values()))
            # Several mechanisms of a hybrid may share an option; anything else must have one owner.
            if len(owners) > 1 and not set(owners) <= set(options):
                ways = " or ".join(repr(f"{owner}.{name}") for owner in owners)
                raise BadInput(f"Setting {name!r} of variant {self.label!r} is ambiguous: write {ways}.")
            for owner in owners:
                chosen[owner][name] = value
        mixers = tuple(Mechanism(name, tuple(sorted(chosen[name].items()))) for name in self.mechanisms)
        model = overrides.changed(model, "model", chosen["model"])
        return dataclasses.replace(model, mixers=mixers), overrides.changed(train, "train", chosen["train"])

    def own(self, setting: str) -> bool:
        """Whether it has a value of its own for a field of the model or the training ("model.width")."""
        return bool({setting, setting.rpartition(".")[2]} & dict(self.settings).keys())

    def at_width(self, width: int, label: str | None = None) -> Variant:
        """This variant in a model of another width."""
        plain = self.without("model.width")
        return Variant(self.mechanisms, label or self.label, **{**dict(plain.settings), "model.width": width})

    def without(self, setting: str) -> Variant:
        """This variant without its own value of `setting`, because the command line gives one."""
        part, _, name = setting.rpartition(".")
        kept = {
            s: v for s, v in self.settings if s != setting and not (s == name and part in ("model", "train"))
        }
        return Variant(self.mechanisms, self.label, **kept)


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """A comparison.

    Attributes:
      title: a line. claim: what is tested, in a sentence.
      variants: names of mechanisms, or `Variant`s. The first is what the others are tested against.
      tune: learning rates, weight decays, widths and seeds, the same for all.
      match: what the widths of the other variants are solved for, so that it equals the first one's.
      published: numbers to stand beside ours.
      scales: "smoke" (a laptop, minutes), "single" (one accelerator, within the hour), "paper" (the
        published recipe as given); one that is missing changes nothing.
    """

    title: str
    task: Task
    variants: tuple[Any, ...]  # of Variant, once made
    train: Train
    model: Transformer = field(default_factory=Transformer)
    tune: Grid = field(default_factory=Grid)
    match: Match = field(default_factory=Match)
    claim: str = ""
    published: Table | None = None
    scales: Mapping[str, Override] = field(default_factory=dict)

    def __post_init__(self):
        variants = tuple(v if isinstance(v, Variant) else Variant(v) for v in self.variants)
        object.__setattr__(self, "variants", variants)
        if not variants:
            raise BadInput("The experiment has no variants: name at least one.")
        labels = [variant.label for variant in variants]
        for label in labels:
            if labels.count(label) > 1:
                raise BadInput(f"Two variants are labelled {label!r}: give one of them another label.")
        for scale in self.scales:
            if scale not in SCALES:
                raise unknown("scale", scale, SCALES)

    def at(self, scale: str, changes: Mapping[str, str] | None = None) -> Experiment:
        """This experiment at a scale, with `changes` of the command line (dotted name -> text).

        Raises BadInput on an unknown scale, an unknown name (with the nearest right one) and a value
        of the wrong type.
        """
        if scale not in SCALES:
            raise unknown("scale", scale, SCALES)
        override = self.scales.get(scale, Override())
        parts = {p: overrides.changed(getattr(self, p), p, getattr(override, p)) for p in PARTS}
        variants = self.variants if override.variants is None else override.variants
        scaled = dataclasses.replace(self, **parts, variants=variants)
        return scaled.override(changes or {})

    def override(self, changes: Mapping[str, str]) -> Experiment:
        """This experiment with values from the command line, which go before what a variant says."""
        changes, variants = dict(changes), self.variants
        if "variants" in changes:
            variants = self.chosen(changes.pop("variants"))
        names = sorted({name for variant in variants for name in variant.mechanisms})
        options = {f"{m}.{option}": kind for m in names for option, kind in _options(m).items()}
        known = {
            f"{p}.{name}": kind for p in PARTS for name, kind in overrides.settable(getattr(self, p)).items()
        }
        known.pop("model.mixers")
        if "match" in changes:  # --match flops
            changes["match.what"] = changes.pop("match")
        parts: dict[str, dict[str, Any]] = {part: {} for part in PARTS}
        for name, text in changes.items():
            if name not in known and name not in options:
                _admit_option(name, names)
                raise overrides.unknown_name(name, [*known, *options, "variants", "scale", "out", "data"])
            grid = GRIDS.get(name, "")
            if grid and (getattr(self.tune, grid.removeprefix("tune.")) or changes.get(grid)):
                raise BadInput(f"{name} is a grid in this experiment: set {grid}.")
            value = overrides.parse(name, {**options, **known}[name], text)
            variants = tuple(variant.without(name) for variant in variants)
            part, _, field_name = name.partition(".")
            if name in options:
                variants = tuple(_with_option(v, part, name, value) for v in variants)
            else:
                parts[part][field_name] = value
        replaced = {part: overrides.changed(getattr(self, part), part, parts[part]) for part in PARTS}
        return dataclasses.replace(self, **replaced, variants=variants)

    def listed(self) -> list[str]:
        """Every setting as it is, as the command line takes it: its name, its value, what it takes."""
        lines = [f"--variants {','.join(variant.label for variant in self.variants)}  (see `list`)"]
        for part in PARTS:
            lines += [
                line
                for line in overrides.listed(getattr(self, part), part)
                if not line.startswith("--model.mixers ")
            ]
        for variant in self.variants:
            mixers = variant.resolve(self.model, self.train)[0].mixers
            for mixer in mixers:
                for option, (kind, default) in catalogue.options(catalogue.find(mixer.name)).items():
                    value = overrides.written(dict(mixer.options).get(option, default))
                    line = f"--{mixer.name}.{option} {value}  ({overrides.describe(kind)})"
                    if line not in lines:
                        lines.append(line)
            own = ", ".join(f"{name}={value}" for name, value in variant.settings)
            if own:
                lines.append(f"  the variant {variant.label!r} has its own: {own}")
        return lines

    def chosen(self, text: str) -> tuple[Variant, ...]:
        """The variants that a comma-separated list names: by label, as this experiment has them, or new: a
        mechanism, a hybrid ("linear+full"), or those of a user's file ("my.py", "my.py:fading")."""
        mine = {variant.label: variant for variant in self.variants}
        mine |= {slug(label): variant for label, variant in mine.items()}
        # A label may hold a comma itself.
        if text in mine:
            return (mine[text],)
        found = []
        for name in filter(None, (part.strip() for part in text.split(","))):
            if name in mine:
                found.append(mine[name])
            elif "+" not in name and name.endswith(".py"):
                found += map(Variant, catalogue.named(name))
            else:
                found.append(Variant(name))
                for mechanism in found[-1].mechanisms:
                    if mechanism not in catalogue.catalogue():
                        raise unknown("variant", mechanism, [*catalogue.catalogue(), *mine])
        return tuple(found)


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """What is measured and not trained: speed, memory, an error of approximation.

    Attributes:
      title: a line. claim: what is tested, in a sentence.
      measure: a dataclass of settings whose `parts()` are what can be measured apart: name -> a function of
        what it reports its progress to, which gives rows of JSON values, each with a "kind".
      published: quantity -> numbers to stand beside ours, as the report names them.
      scales: as of an `Experiment`; of each, the settings that it changes.
    """

    title: str
    measure: Any
    claim: str = ""
    published: Mapping[str, Table] = field(default_factory=dict)
    scales: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def __post_init__(self):
        for scale in self.scales:
            if scale not in SCALES:
                raise unknown("scale", scale, SCALES)

    def at(self, scale: str, changes: Mapping[str, str] | None = None) -> Measurement:
        """As `Experiment.at`; the command line names a setting measure.NAME."""
        if scale not in SCALES:
            raise unknown("scale", scale, SCALES)
        known = {f"measure.{name}": kind for name, kind in overrides.settable(self.measure).items()}
        given = dict(self.scales.get(scale, {}))
        for name, text in (changes or {}).items():
            if name not in known:
                raise unknown("override", name, known)
            given[name.partition(".")[2]] = overrides.parse(name, known[name], text)
        return dataclasses.replace(self, measure=overrides.changed(self.measure, "measure", given))

    def listed(self) -> list[str]:
        """Every setting, as `Experiment.listed`."""
        return overrides.listed(self.measure, "measure")


def slug(text: str) -> str:
    """A readable file name for a label."""
    return re.sub(r"[^A-Za-z0-9_.+-]+", "-", text).strip("-")


def find(name: str) -> Path:
    """The file of an experiment, by path or by its name in `experiments/`.

    Raises BadInput, with the nearest name, where there is none.
    """
    path = Path(name)
    if path.suffix == ".py":
        if not path.is_file():
            raise BadInput(f"There is no experiment file {name}: `list` shows those of {FOLDER}/.")
        return path
    known = available()
    if name not in known:
        raise unknown("experiment", name, known)
    return known[name]


def available() -> dict[str, Path]:
    """The experiments of the working directory's `experiments/` and of the source tree's, by name."""
    folders = (Path(__file__).parent.parent / FOLDER, Path(FOLDER))
    return {
        path.stem: path for folder in folders for path in sorted(folder.glob("*.py")) if path.stem[0] != "_"
    }


def load(path: Path) -> tuple[Experiment | Measurement, str]:
    """The experiment of a file, and the file's docstring. Raises BadInput where it cannot be run or has no
    experiment.
    """
    module = load_module(f"experiment_{path.stem}", path)
    experiment = getattr(module, "experiment", None)
    if not isinstance(experiment, Experiment | Measurement):
        raise BadInput(f"{path} assigns no experiment: it needs a line `experiment = Experiment(...)`.")
    return experiment, (module.__doc__ or "").strip()


def _mechanism(part: str, whole: str | tuple[str, ...]) -> str:
    """The name of a mechanism that a variant is written with."""
    if not part:
        raise BadInput(f"The hybrid {whole!r} lacks a mechanism beside a +: write one, such as linear+full.")
    if ".py" not in part:
        return part
    names = catalogue.named(part)
    if len(names) > 1:
        raise BadInput(f"{part} defines {', '.join(names)}: name one of them, such as {part}:{names[0]}.")
    return names[0]


def _options(mechanism: str) -> dict[str, Any]:
    return {name: kind for name, (kind, _) in catalogue.options(catalogue.find(mechanism)).items()}


def _admit_option(name: str, mechanisms: Sequence[str]) -> None:
    """Raises BadInput where `name` is an option of a mechanism that has none, or that no variant has."""
    mechanism = name.partition(".")[0]
    if "." not in name or mechanism not in catalogue.catalogue():
        return
    if mechanism not in mechanisms:
        raise BadInput(
            f"{name} is an option of a mechanism that no variant has; they have {', '.join(mechanisms)}: "
            f"add {mechanism} to --variants."
        )
    if not _options(mechanism):
        raise BadInput(f"{name} cannot be set, for {mechanism} has no options: leave it out.")


def _with_option(variant: Variant, mechanism: str, name: str, value: Any) -> Variant:
    if mechanism not in variant.mechanisms:
        return variant
    kept = {s: v for s, v in variant.settings if s != name.partition(".")[2]}
    return Variant(variant.mechanisms, variant.label, **kept, **{name: value})
