"""The `report` verb: files beside the results, tables in the terminal, or machine-readable lines."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

from rich.console import Console

from transformer_jax.errors import BadInput
from transformer_jax.report import compare, html, index, measured, plots, table, tradeoffs
from transformer_jax.report.keep import keep
from transformer_jax.report.measured import Measured
from transformer_jax.report.results import Results, differing_versions
from transformer_jax.report.sheets import sheets
from transformer_jax.report.statistics import spread
from transformer_jax.report.summary import COUNTED, p_values, standing, summarize
from transformer_jax.report.table import Sheet
from transformer_jax.store import place, write_text


def report(
    directories: Sequence[Path], console: Console | None = None, kept: Path | None = None
) -> list[Path]:
    """Writes DIR/report/ for each directory and shows its tables. Returns the HTML pages.

    Of several, each has the comparison of the first with every other. Of a folder of such directories each
    is reported by itself, and README.md written, which sums them up.

    Args:
      kept: a directory into which the results are copied in their compact form (`keep`); the report is
        then written there.

    Raises BadInput where a directory holds no results or cannot be written.
    """
    console = console or Console()
    if len(directories) == 1 and (children := index.held(place(directories[0]))):
        pages = [page for child in children for page in report([child], console)]
        write_text(place(directories[0]) / "README.md", index.page(children))
        return pages
    found = [measured.results(place(directory)) for directory in directories]
    if kept is not None:
        if len(found) > 1:
            raise BadInput(f"--keep takes one directory of results, not {len(found)}: keep each alone.")
        found = [measured.results(keep(found[0], kept))]
    everything = [one for one in found if isinstance(one, Results)]
    warnings = version_warnings(everything)
    for warning in warnings:
        console.print(f"Warning: {warning}", style="yellow", highlight=False)
    beside = [sheet for other in everything[1:] for sheet in compare.compared(everything[0], other)]
    pages = []
    for one in found:
        trained = isinstance(one, Results)
        shown = _tables(one)
        pages.append(write(one, warnings if trained else (), [*shown, *beside] if trained else shown))
        _show(shown, console)
        console.print(f"Wrote {pages[-1]}", highlight=False, markup=False, soft_wrap=True)
    _show(beside, console)
    return pages


def _tables(one: Results | Measured) -> list[Sheet]:
    return sheets(one) if isinstance(one, Results) else measured.sheets(one)


def _show(shown: Sequence[Sheet], console: Console) -> None:
    for sheet in shown:
        console.print(table.terminal(sheet, console.width))
        for note in sheet.notes:
            console.print(f"  {note}", style="dim", highlight=False, markup=False)
        console.print()


def write(
    results: Results | Measured, warnings: Sequence[str] = (), written: Sequence[Sheet] | None = None
) -> Path:
    """report.md, .tex, .csv, .html and the figures, into the directory's report/. Returns the page.

    `written`: the tables, where they are not those of the results alone.
    """
    folder = results.directory / "report"
    written = _tables(results) if written is None else written
    if isinstance(results, Results):
        figures, rows = plots.figures(results) | tradeoffs.figures(results), numbers(results)
    else:
        figures, rows = measured.figures(results), measured.numbers(results)
    title = results.experiment["title"]
    text = "\n".join(
        [f"# {title}", "", *(f"**{warning}**\n" for warning in warnings), *map(table.markdown, written)]
    )
    drawings = {name: plots.svg(figure, name) for name, figure in figures.items()}
    # A repository need not hold a drawing twice.
    kinds: tuple[Literal["svg", "png"], ...] = ("svg",) if results.kept else ("png", "svg")
    links = "\n".join(f"![{name}]({name}.{kinds[0]})" for name in figures)
    if folder.exists() and not folder.is_dir():
        raise BadInput(f"Cannot write {folder}, for it is a file: move it away.")
    try:
        folder.mkdir(exist_ok=True)
        for name, figure in figures.items():
            for kind in kinds:
                (folder / f"{name}.{kind}").write_bytes(plots.drawn(figure, name, kind))
        write_text(folder / "report.md", f"{text}\n{links}\n")
        write_text(folder / "report.tex", table.latex_document(title, written))
        write_text(folder / "report.csv", table.comma_separated(rows))
        if isinstance(results, Results):
            page = html.page(results, written, drawings, warnings)
        else:
            page = measured.page(results, written, drawings)
        write_text(folder / "report.html", page)
    except OSError as error:
        raise BadInput(f"Cannot write {folder}: {error.strerror}. Make the directory writable.") from None
    return folder / "report.html"


def numbers(results: Results) -> list[dict[str, Any]]:
    """What report.csv holds: a row for each variant and test set, for each baseline and published number."""
    published = (results.experiment.get("published") or {"rows": {}})["rows"]

    def row(kind: str, label: str, test: str, **given: Any) -> dict[str, Any]:
        found = dict.fromkeys(
            ("kind", "label", "test", "metric", "mean", "half_width", "low", "high", "n", "p")
            + ("learning_rate", *COUNTED, "steps_per_s", "data_wait")
        )
        return found | {"kind": kind, "label": label, "test": test, "metric": results.metric} | given

    summaries = summarize(results)
    p = p_values(summaries)
    rows = []
    for summary in summaries:
        of_run = {
            "learning_rate": summary.best.learning_rate if summary.best else None,
            **dataclasses.asdict(summary.cost),
        }
        for test, seeds in summary.scores.items():
            said = dataclasses.asdict(spread(list(seeds.values()))) if seeds else {"count": 0}
            said["n"] = said.pop("count")
            more = {"p": p.get(summary.label)} if test == "test" else {}
            rows.append(row("variant", summary.label, test, **said, **of_run, **more))
    rows += [row("baseline", name, "test", mean=value) for name, value in results.baselines.items()]
    rows += [
        row("published", label, test, mean=value)
        for label, values in published.items()
        for test, value in values.items()
    ]
    return rows


def lines(directories: Sequence[Path]) -> Iterator[dict[str, Any]]:
    """One JSON object for each warning, each variant of each directory and each difference to the first; and
    the rows of measurements. Of a folder of results, those of each by itself."""
    if len(directories) == 1 and (children := index.held(place(directories[0]))):
        for child in children:
            yield from lines([child])
        return
    found = [measured.results(place(directory)) for directory in directories]
    yield from (row for one in found if isinstance(one, Measured) for row in one.rows)
    everything = [one for one in found if isinstance(one, Results)]
    for warning in version_warnings(everything):
        yield {"kind": "warning", "message": warning}
    for results in everything:
        summaries = summarize(results)
        stands = standing(results, summaries)
        for summary in summaries:
            yield {
                "kind": "variant",
                "directory": str(results.directory),
                "label": summary.label,
                "metric": results.metric,
                "learning_rate": summary.best.learning_rate if summary.best else None,
                "scores": {
                    test: {**dataclasses.asdict(spread(list(seeds.values()))), "seeds": seeds}
                    for test, seeds in summary.scores.items()
                    if seeds
                },
                "rates": {f"{rate.learning_rate:g}": rate.validation for rate in summary.rates},
                "rates_that_work": sum(rate.works for rate in summary.rates),
                "baselines": results.baselines,
                "standing": stands.get(summary.label),
                **dataclasses.asdict(summary.cost),
                "runs": dict(summary.counts),
                "notes": list(summary.notes),
                "verdicts": {test: dataclasses.asdict(verdict) for test, verdict in summary.verdicts.items()},
            }

    for other in everything[1:]:
        for label, test, _, _, spread_of in compare.differences_in_scores(everything[0], other):
            yield {
                "kind": "difference",
                "directory": str(other.directory),
                "from": str(everything[0].directory),
                "label": label,
                "test": test,
                "difference": spread_of and dataclasses.asdict(spread_of),
            }


def print_lines(directories: Sequence[Path]) -> None:
    for line in lines(directories):
        print(json.dumps(line))


def version_warnings(everything: Sequence[Results]) -> list[str]:
    """A sentence where the runs had different library versions, within a directory or between several."""
    different = differing_versions(everything)
    if not different:
        return []
    listed = "; ".join(f"{library} {' and '.join(versions)}" for library, versions in different.items())
    return [f"Not comparable without care: the runs used different versions ({listed})."]
