"""The README of a folder of kept results: a line for each, then each beside the published numbers."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from transformer_jax.report import measured
from transformer_jax.report.measured import Measured
from transformer_jax.report.results import Results
from transformer_jax.report.sheets import NOTHING, against_published, central, metric_name
from transformer_jax.report.summary import Summary, remarks, summarize
from transformer_jax.report.table import Column, Sheet, markdown

TITLE = "Results"
DEPARTURE = re.compile(r"train\.steps is [\d,]+, published with ([\d,]+)")


def held(folder: Path) -> list[Path]:
    """The directories of results that a folder holds, by name; none where it is one of them itself."""
    if (folder / "experiment.json").is_file() or not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if (path / "experiment.json").is_file())


def page(directories: list[Path]) -> str:
    """README.md beside the directories, computed from their records."""
    everything = [measured.results(directory) for directory in directories]
    head = (
        "Written by `transformer-jax report` from the records below: every number in it is computed from "
        "them, and can be again."
    )
    sections = [_section(one) if isinstance(one, Results) else measured.section(one) for one in everything]
    return "\n".join([f"# {TITLE}", "", head, "", overview(everything), *sections])


def overview(everything: Sequence[Results | Measured]) -> str:
    """A row for each experiment: what was run, how it came out, what it says of the published numbers."""
    rows = tuple(
        (f"`{one.directory.name}`", *(_row(one) if isinstance(one, Results) else measured.overview(one)))
        for one in everything
    )
    names = ("experiment", "setting", "result", "beside the published")
    sheet = Sheet(title="", columns=tuple(Column(name, "words") for name in names), rows=rows)
    return "\n".join(markdown(sheet).splitlines()[2:]) + "\n"


def _row(results: Results) -> tuple[str, str, str]:
    summaries = summarize(results)
    words = Counter(verdict.word for s in summaries for verdict in s.verdicts.values())
    said = ", ".join(f"{n} {word}" for word, n in words.most_common()) or "none published"
    return _setting(results), _ranking(results, summaries), said


def _setting(results: Results) -> str:
    tune, experiment = results.experiment.get("tune", {}), results.experiment
    rates = len({cell.learning_rate for cell in results.cells})
    counts = (
        ("variant", len(results.labels)),
        ("rate", rates),
        ("seed", tune.get("seeds", len({cell.seed for cell in results.cells}))),
    )
    size = ", ".join(f"{n} {what}{'s' * (n != 1)}" for what, n in counts)
    where = ", ".join([*results.devices(), " to ".join(results.dates())])
    return "; ".join(filter(None, [experiment.get("scale", ""), size, _steps(experiment), where]))


def _steps(experiment: Mapping[str, Any]) -> str:
    """How many steps a run may take, and how many the published ones took where those are others."""
    steps = {s.get("train", {}).get("steps") for s in experiment.get("settings", {}).values()} - {None}
    said = [line for lines in experiment.get("departures", {}).values() for line in lines]
    published = {found[1] for line in said if (found := DEPARTURE.match(line))}
    ours = " to ".join(f"{n:,}" for n in sorted({min(steps), max(steps)})) + " steps" if steps else ""
    theirs = sorted(published, key=lambda number: int(number.replace(",", "")))
    return f"{ours} (published: {' to '.join(theirs)})" if published else ours


def _ranking(results: Results, summaries: list[Summary]) -> str:
    """Mean scores on the test set, the best first."""
    means = {
        s.label: float(np.mean(list(s.scores["test"].values()))) for s in summaries if s.scores.get("test")
    }
    ranked = sorted(means.items(), key=lambda item: item[1], reverse=results.higher_is_better)
    return f"{metric_name(results)}: " + (
        ", ".join(f"{label} {mean:.3f}" for label, mean in ranked) or NOTHING
    )


def _section(results: Results) -> str:
    """One experiment: how it was run, its scores, its verdicts."""
    experiment, name = results.experiment, results.directory.name
    more = f"Every table and figure: [{name}]({name}/report/report.md)."
    versions = "; ".join(", ".join(f"{k} {v}" for k, v in found) for found in sorted(results.versions()))
    summaries = summarize(results)
    columns = (Column("variant", "words"), Column(f"test {metric_name(results)}"), Column("rates that work"))
    rows = tuple((s.label, central(s.scores.get("test", {})), s.window) for s in summaries)
    sheets = [Sheet(title="", columns=columns, rows=rows, notes=tuple(remarks(results, summaries)))]
    if any(summary.verdicts for summary in summaries):
        sheets.append(against_published(results, summaries))
    return "\n".join(
        [
            f"## {experiment['title']}",
            "",
            f"{experiment.get('claim', '')} {more}".lstrip(),
            "",
            f"    {experiment.get('command', '')}",
            "",
            f"{_setting(results)}. {versions}.",
            "",
            *(line for sheet in sheets for line in [*markdown(sheet).splitlines()[2:], ""]),
        ]
    )
