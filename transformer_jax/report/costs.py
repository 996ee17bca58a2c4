"""Time and memory against length: ratios beside the published ones, growth, crossover to full attention."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from transformer_jax import growth
from transformer_jax.report import plots
from transformer_jax.report.sheets import NOTHING
from transformer_jax.report.table import Column, Sheet

Row = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Quantity:
    """A number of each program at each length. `values`: name -> part, such as "T = 1024" -> value."""

    name: str
    title: str
    unit: str
    form: str
    values: dict[str, dict[str, float]]


def quantities(rows: Sequence[Row]) -> list[Quantity]:
    """Speed, and memory where it could be read, of the last pass that was timed."""
    timed = next(key for key in reversed(rows[0]) if key.endswith("_ms")).removesuffix("_ms")
    speed: dict[str, dict[str, float]] = {row["name"]: {} for row in rows}
    memory: dict[str, dict[str, float]] = {row["name"]: {} for row in rows}
    for row in rows:
        part = f"T = {row['length']}"
        if row[f"{timed}_ms"]:
            speed[row["name"]][part] = 1e3 / row[f"{timed}_ms"]
        if row[f"{timed}_temporaries"]:
            memory[row["name"]][part] = row[f"{timed}_temporaries"] / 2**20
    unit = "steps/s" if timed == "step" else "passes/s"
    title = f"{timed.replace('_', ' + ')}: {unit}"
    found = [Quantity(name="steps/s", title=title, unit=unit, form=".3g", values=speed)]
    if any(memory.values()):
        title = "temporaries, MiB"
        found.append(Quantity(name="memory", title=title, unit="MiB", form=",.1f", values=memory))
    return found


def ratios(rows: Sequence[Row], quantity: Quantity, published: Mapping[str, Any] | None) -> Sheet:
    """A quantity of every program and its ratio to the first one's; the published ones under it."""
    parts = list(dict.fromkeys(part for values in quantity.values.values() for part in values))
    theirs = published["rows"] if published else {}
    first = next(iter(quantity.values))

    def row(label: str, values: dict[str, float], to: dict[str, float], form: str) -> tuple[str, ...]:
        return label, *(
            f"{values[part]:{form}}" + (f" ({values[part] / to[part]:.2f}×)" if to.get(part) else "")
            if part in values
            else NOTHING
            for part in parts
        )

    lines = []
    for name, values in quantity.values.items():
        lines.append(row(name, values, quantity.values[first], quantity.form))
        if set(theirs.get(name, {})) & set(parts):
            lines.append(row(f"published: {name}", theirs[name], theirs[first], "g"))
    notes = [f"In brackets: the ratio to {first}."]
    if published:
        notes += [
            f"Published: {published['source']} ({published['tag']}), on other hardware, where absolute "
            f"numbers are not comparable; its ratios stand beside ours for orientation, without a verdict.",
            *(f"{name}, published: {note}." for name, note in published["notes"].items()),
        ]
    notes += [f"{name} at {part}: {why}." for name, part, why in _skipped(rows)]
    columns = (Column("program", "words"), *(Column(part) for part in parts))
    return Sheet(title=quantity.title.capitalize(), columns=columns, rows=tuple(lines), notes=tuple(notes))


def exponents(rows: Sequence[Row]) -> Sheet:
    """Of time and memory in T, and from which length on a program costs less than full attention."""
    speed, *memory = quantities(rows)
    costs = {"time": {name: _inverse(values) for name, values in speed.values.items()}}
    costs |= {name: quantity.values for name, quantity in zip(["temporaries"], memory, strict=False)}
    less = {"time": "faster than {} from", "temporaries": "less memory than {} from"}
    lines = []
    for name in speed.values:
        slopes = [slope(cost[name]) for cost in costs.values()]
        crossovers = [crossover(cost, name, to) for cost in costs.values() for to in _attention(cost)]
        lines.append((name, *(NOTHING if s is None else f"{s:.2f}" for s in slopes), *crossovers))
    return Sheet(
        title="Growth with T",
        columns=(
            Column("program", "words"),
            *(Column(f"exponent of {what}") for what in costs),
            *(Column(less[what].format(to)) for what, cost in costs.items() for to in _attention(cost)),
        ),
        rows=tuple(lines),
        notes=(
            "Exponents: least squares of the logarithms over the lengths measured.",
            "From: the first length measured from which on that holds at every one.",
        ),
    )


def slope(values: dict[str, float]) -> float | None:
    """The exponent of T in a quantity; None for fewer than two lengths."""
    return growth.exponent(_by_length(values).items())


def crossover(costs: dict[str, dict[str, float]], name: str, to: str) -> str:
    """`below_from` in words."""
    found = below_from(costs, name, to)
    return NOTHING if found is None else "never here" if math.isinf(found) else str(found)


def below_from(costs: dict[str, dict[str, float]], name: str, to: str) -> float | None:
    """The first length from which on `name` costs less than `to` (`growth.below_from`); None for itself."""
    return None if name == to else growth.below_from(_by_length(costs[name]), _by_length(costs[to]))


def _attention(costs: dict[str, dict[str, float]]) -> list[str]:
    return [name for name in costs if name.partition("(")[0] == "full"]


def ranking(quantity: Quantity) -> str:
    """Every program at the greatest length, the one with most first, with its ratio to the first program."""
    parts = {part for values in quantity.values.values() for part in values}
    if not parts:
        return NOTHING
    part = max(parts, key=_length)
    found = {name: values[part] for name, values in quantity.values.items() if part in values}
    first = found.get(next(iter(quantity.values)))
    shown = (
        f"{name} {found[name]:{quantity.form}}" + (f" ({found[name] / first:.2g}×)" if first else "")
        for name in sorted(found, key=lambda name: -found[name])
    )
    return f"{quantity.unit} at {part}: {', '.join(shown)}"


def draw(figure: Figure, rows: Sequence[Row]) -> None:
    """Time and memory against length."""
    speed, *memory = quantities(rows)
    drawn = [("milliseconds", {name: _inverse(values) for name, values in speed.values.items()})]
    drawn += [(quantity.title, quantity.values) for quantity in memory]
    for axes, (title, values) in zip(figure.subplots(1, len(drawn), squeeze=False)[0], drawn, strict=True):
        _draw(axes, values)
        axes.set_ylabel(title)
    axes.legend(loc="center left", bbox_to_anchor=(1, 0.5), fontsize=8)


def _draw(axes: Axes, costs: dict[str, dict[str, float]]) -> None:
    """A cost against length, ringed from where on it stays below that of full attention."""
    for (name, values), look in zip(costs.items(), plots.looks(), strict=False):
        axes.plot(
            [_length(part) for part in values], list(values.values()), "o", **look, label=name, markersize=3
        )
        for to in _attention(costs)[-1:]:
            part = f"T = {below_from(costs, name, to)}"
            if part in values:
                ring = {"markerfacecolor": "none", "markersize": 9, "color": look["color"]}
                axes.plot(_length(part), values[part], "o", **ring)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xlabel("T, tokens")


def _skipped(rows: Sequence[Row]) -> Sequence[tuple[str, str, str]]:
    return [(row["name"], f"T = {row['length']}", row["skipped"]) for row in rows if row["skipped"]]


def _inverse(speed: dict[str, float]) -> dict[str, float]:
    """Milliseconds, of what is done in a second."""
    return {part: 1e3 / each for part, each in speed.items()}


def _by_length(values: dict[str, float]) -> dict[int, float]:
    return {_length(part): value for part, value in values.items()}


def _length(part: str) -> int:
    return int(part.removeprefix("T = "))
