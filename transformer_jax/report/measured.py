"""The tables and figures of a measurement: what `run` writes where nothing is trained."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure

from transformer_jax.errors import BadInput
from transformer_jax.report import approximated, costs, html, plots
from transformer_jax.report import results as trained
from transformer_jax.report.results import Results, device_in_words
from transformer_jax.report.table import Sheet, markdown

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
    if timed := measured.of("measurement"):
        published = measured.experiment["published"]
        found += [costs.ratios(timed, each, published.get(each.name)) for each in costs.quantities(timed)]
        found += [costs.exponents(timed)]
    return found


def figures(measured: Measured) -> dict[str, Figure]:
    """Every figure that the rows fill, by file name."""
    found = {}
    with matplotlib.rc_context(plots.STYLE):
        if errors := measured.of("approximation"):
            found["errors"] = figure = Figure(figsize=(7.2, 3.6), layout="constrained")
            approximated.draw(figure.add_subplot(), errors)
        if timed := measured.of("measurement"):
            found["cost"] = figure = Figure(figsize=(9.6, 3.8), layout="constrained")
            costs.draw(figure, timed)
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
    if timed := measured.of("measurement"):
        speed = costs.quantities(timed)[0]
        outcome.append(costs.ranking(speed))
        if measured.experiment["published"].get(speed.name):
            beside.append("ratios, without a verdict")
    return setting(measured), "; ".join(outcome), "; ".join(beside) or "none published"


def setting(measured: Measured) -> str:
    """Scale, device and day; of plans the slice that was planned for, which is not here."""
    experiment = measured.experiment
    planned = sorted({row["device"] for row in measured.of("measurement") if row.get("what") == "plan"})
    device = ", ".join(planned) or device_in_words(experiment["device"])
    return ", ".join(filter(None, [experiment.get("scale"), device, experiment.get("date")]))


def _inside(value: Any) -> list[tuple[str, Any]]:
    return list(value.items()) if isinstance(value, dict) else [("", value)]


def _json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text()) if path.is_file() else {}
    except ValueError:
        raise BadInput(f"{path} is not readable JSON: remove it and run the experiment again.") from None
