"""The tables and figures of a measurement: what `run` writes where nothing is trained."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from transformer_jax.errors import BadInput
from transformer_jax.report import approximated, html, plots
from transformer_jax.report import results as trained
from transformer_jax.report.results import Results, device_in_words
from transformer_jax.report.sheets import NOTHING
from transformer_jax.report.table import Column, Sheet, markdown

Row = dict[str, Any]
RECORD, ROWS = "experiment.json", "measurements.jsonl"


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What experiment.json says of a measurement, and the rows of measurements.jsonl."""

    directory: Path
    experiment: dict[str, Any]
    rows: tuple[Row, ...]

    @property
    def kept(self) -> bool:
        """Whether they are in the form that a repository holds."""
        return self.experiment.get("kept", False)

    def of(self, kind: str) -> list[Row]:
        return [row for row in self.rows if row["kind"] == kind]


@dataclass(frozen=True, kw_only=True)
class Quantity:
    """A number of each program at each length. `values`: name -> part, such as "T = 1024" -> value."""

    name: str
    title: str
    unit: str
    form: str
    values: dict[str, dict[str, float]]


def read(directory: Path) -> Measured | None:
    """The measurement in a directory; None where it holds something else."""
    record = _json(directory / RECORD)
    if record.get("kind") != "measurement":
        return None
    lines = (directory / ROWS).read_text().splitlines() if (directory / ROWS).is_file() else []
    if not lines:
        raise BadInput(f"{directory} has no measurement yet: let `run` finish a part of it.")
    return Measured(directory=directory, experiment=record, rows=tuple(map(json.loads, lines)))


def results(directory: Path) -> Results | Measured:
    """What a directory holds: a measurement, or what was trained. Raises BadInput where it holds neither."""
    return read(directory) or trained.read(directory)


def sheets(measured: Measured) -> list[Sheet]:
    """Every table that the rows fill."""
    found = []
    if errors := measured.of("approximation"):
        found += [approximated.errors(errors), approximated.claims(errors)]
    if measured.of("measurement"):
        found += [ratios(measured, quantity) for quantity in quantities(measured)]
        found += [exponents(measured)]
    return found


def figures(measured: Measured) -> dict[str, Figure]:
    """Every figure that the rows fill, by file name."""
    found = {}
    with matplotlib.rc_context(plots.STYLE):
        if errors := measured.of("approximation"):
            found["errors"] = figure = Figure(figsize=(7.2, 3.6), layout="constrained")
            approximated.draw(figure.add_subplot(), errors)
        if measured.of("measurement"):
            found["cost"] = figure = Figure(figsize=(9.6, 3.8), layout="constrained")
            drawn = quantities(measured)
            for axes, quantity in zip(figure.subplots(1, len(drawn), squeeze=False)[0], drawn, strict=True):
                for (name, values), look in zip(quantity.values.items(), plots.looks(), strict=False):
                    lengths = [_length(part) for part in values]
                    axes.plot(lengths, list(values.values()), "o", **look, label=name, markersize=3)
                axes.set_xscale("log", base=2)
                axes.set_yscale("log")
                axes.set_xlabel("T, tokens")
                axes.set_ylabel(quantity.title)
            axes.legend(loc="center left", bbox_to_anchor=(1, 0.5), fontsize=8)
    return found


def numbers(measured: Measured) -> list[Row]:
    """What report.csv holds: the rows, with a column for all that any of them has."""
    flat = [
        {
            f"{name}/{inner}" if inner else name: each
            for name, value in row.items()
            for inner, each in _inside(value)
        }
        for row in measured.rows
    ]
    names = dict.fromkeys(name for row in flat for name in row)
    return [dict.fromkeys(names) | row for row in flat]


def page(measured: Measured, sheets: Sequence[Sheet], drawings: Mapping[str, str]) -> str:
    """The page of report.html, as `html.page` of a sweep."""
    experiment = measured.experiment
    parts = [
        f"<h1>{escape(experiment['title'])}</h1>",
        f'<p class="claim">{escape(experiment["claim"])}</p>',
        f'<p class="facts">{escape(setting(measured))} · configuration {experiment["digest"][:12]}</p>',
        *(html.figure(name, drawing) for name, drawing in drawings.items()),
        *(f"<h2>{escape(sheet.title)}</h2>{html.table(sheet)}" for sheet in sheets),
        "<h2>What was run</h2>",
        f"<pre>{escape(experiment.get('command', ''))}</pre>",
        html.details("About this experiment", f"<pre>{escape(experiment.get('doc', ''))}</pre>"),
        html.details("Settings", f"<pre>{escape(json.dumps(experiment['settings'], indent=1))}</pre>"),
        html.details("Versions", f"<pre>{escape(json.dumps(experiment['versions'], indent=1))}</pre>"),
    ]
    return html.document(experiment["title"], parts)


def section(measured: Measured) -> str:
    """What README.md of a folder of kept results says of it."""
    experiment, name = measured.experiment, measured.directory.name
    more = f"Figures: [{name}]({name}/report/report.md)."
    versions = ", ".join(f"{library} {version}" for library, version in experiment["versions"].items())
    lines = [f"## {experiment['title']}", "", f"{experiment['claim']} {more}", ""]
    lines += [f"    {experiment.get('command', '')}", "", f"{setting(measured)}. {versions}.", ""]
    return "\n".join([*lines, *(f"#{markdown(sheet)}" for sheet in sheets(measured))])


def overview(measured: Measured) -> tuple[str, str, str]:
    """What the first table of that README says of it: how it was had, how it came out, beside what."""
    outcome, beside = [], []
    if errors := measured.of("approximation"):
        outcome.append(approximated.ranking(errors))
        beside.append(approximated.judged(errors))
    if measured.of("measurement"):
        speed = quantities(measured)[0]
        outcome.append(ranking(speed))
        if measured.experiment["published"].get(speed.name):
            beside.append("ratios, without a verdict")
    return setting(measured), "; ".join(outcome), "; ".join(beside) or "none published"


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


def setting(measured: Measured) -> str:
    """Scale, device and day."""
    experiment = measured.experiment
    device = device_in_words(experiment["device"])
    return ", ".join(filter(None, [experiment.get("scale"), device, experiment.get("date")]))


def quantities(measured: Measured) -> list[Quantity]:
    """Speed, and memory where it could be read, of the last pass that was timed."""
    rows = measured.of("measurement")
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


def ratios(measured: Measured, quantity: Quantity) -> Sheet:
    """A quantity of every program and its ratio to the first one's; the published ones under it."""
    parts = list(dict.fromkeys(part for values in quantity.values.values() for part in values))
    published = measured.experiment["published"].get(quantity.name)
    theirs = published["rows"] if published else {}
    first = next(iter(quantity.values))

    def row(label: str, values: dict[str, float], to: dict[str, float], form: str) -> tuple[str, ...]:
        return label, *(
            f"{values[part]:{form}}" + (f" ({values[part] / to[part]:.2f}×)" if to.get(part) else "")
            if part in values
            else NOTHING
            for part in parts
        )

    rows = []
    for name, values in quantity.values.items():
        rows.append(row(name, values, quantity.values[first], quantity.form))
        if set(theirs.get(name, {})) & set(parts):
            rows.append(row(f"published: {name}", theirs[name], theirs[first], "g"))
    notes = [f"In brackets: the ratio to {first}."]
    if published:
        notes += [
            f"Published: {published['source']} ({published['tag']}), on other hardware, where absolute "
            f"numbers are not comparable; its ratios stand beside ours for orientation, without a verdict.",
            *(f"{name}, published: {note}." for name, note in published["notes"].items()),
        ]
    notes += [f"{name} at {part}: {why}." for name, part, why in _skipped(measured)]
    columns = (Column("program", "words"), *(Column(part) for part in parts))
    return Sheet(title=quantity.title.capitalize(), columns=columns, rows=tuple(rows), notes=tuple(notes))


def exponents(measured: Measured) -> Sheet:
    """Of each quantity in T, and from which length on a program is faster than full attention."""
    drawn = quantities(measured)
    speed = drawn[0].values
    rows = []
    for name in speed:
        slopes = [slope(quantity.values[name]) for quantity in drawn]
        shown = [NOTHING if s is None else f"{-s if n == 0 else s:.2f}" for n, s in enumerate(slopes)]
        rows.append((name, *shown, *(crossover(speed, name, to) for to in _attention(speed))))
    return Sheet(
        title="Growth with T",
        columns=(
            Column("program", "words"),
            Column("exponent of time"),
            *(Column("exponent of temporaries") for _ in drawn[1:]),
            *(Column(f"faster than {to} from") for to in _attention(speed)),
        ),
        rows=tuple(rows),
        notes=("Exponents: least squares of the logarithms over the lengths measured.",),
    )


def slope(values: dict[str, float]) -> float | None:
    """The exponent of T in a quantity; None for fewer than two lengths."""
    if len(values) < 2:
        return None
    x, y = np.log([[_length(part), value] for part, value in values.items()]).T
    return float(np.polyfit(x, y, 1)[0])


def crossover(speed: dict[str, dict[str, float]], name: str, to: str) -> str:
    """The first length from which on `name` is faster than `to` at every length measured."""
    both = [part for part in speed[name] if part in speed[to]]
    slower = [n for n, part in enumerate(both) if speed[name][part] <= speed[to][part]]
    after = both[slower[-1] + 1 :] if slower else both
    return NOTHING if name == to or not both else after[0].removeprefix("T = ") if after else "never here"


def _attention(speed: dict[str, dict[str, float]]) -> list[str]:
    return [name for name in speed if name.partition("(")[0] == "full"]


def _skipped(measured: Measured) -> Sequence[tuple[str, str, str]]:
    rows = measured.of("measurement")
    return [(row["name"], f"T = {row['length']}", row["skipped"]) for row in rows if row["skipped"]]


def _inside(value: Any) -> list[tuple[str, Any]]:
    return list(value.items()) if isinstance(value, dict) else [("", value)]


def _length(part: str) -> int:
    return int(part.removeprefix("T = "))


def _json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text()) if path.is_file() else {}
    except ValueError:
        raise BadInput(f"{path} is not readable JSON: remove it and run the experiment again.") from None
