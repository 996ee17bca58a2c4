"""The report as one page that needs nothing else: no network, no script, figures inline."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from html import escape

from transformer_jax.report.results import Results
from transformer_jax.report.table import Sheet

_STYLE = """
:root { color-scheme: light dark; --ink: #1b1f24; --soft: #59636e; --page: #ffffff; --line: #d7dce2;
  --tint: #f4f6f8; --good: #1a7f37; --bad: #b42318; --warn: #8a5a00; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e9ed; --soft: #9aa4af; --page: #14171b;
  --line: #323840; --tint: #1c2026; --good: #4cc26c; --bad: #ff8a7a; --warn: #e2b04a; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink); line-height: 1.55;
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", sans-serif; }
main { max-width: 68rem; margin: 0 auto; padding: 2.5rem 1.25rem 5rem; }
h1 { font-size: 1.9rem; line-height: 1.2; margin: 0 0 .5rem; }
h2 { font-size: 1.2rem; margin: 2.75rem 0 .6rem; }
.claim { font-size: 1.1rem; margin: 0 0 1rem; max-width: 44rem; }
.facts { color: var(--soft); font-size: .88rem; margin: 0; }
.warning { border-left: 3px solid var(--warn); background: var(--tint); padding: .5rem .9rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: .88rem; font-variant-numeric: tabular-nums; min-width: 100%; }
th, td { padding: .4rem .7rem; border-bottom: 1px solid var(--line); text-align: right; white-space: nowrap; }
th { font-weight: 600; color: var(--soft); vertical-align: bottom; white-space: normal; }
th.words, td.words { text-align: left; }
td:first-child { font-weight: 600; }
tr.aside td { color: var(--soft); font-weight: 400; }
.good { color: var(--good); } .bad { color: var(--bad); } .warn { color: var(--warn); }
ul.notes { color: var(--soft); font-size: .88rem; padding-left: 1.1rem; }
figure { margin: 1rem 0 0; } figure svg { width: 100%; max-width: 52rem; height: auto; }
figcaption { color: var(--soft); font-size: .88rem; }
pre { background: var(--tint); padding: .9rem; overflow-x: auto; font-size: .8rem; line-height: 1.45; }
details { border-top: 1px solid var(--line); padding: .6rem 0; }
summary { cursor: pointer; font-weight: 600; }
"""

_CAPTIONS = {
    "scores": "Points are seeds at the variant's best learning rate, bars their means; dashes are baselines.",
    "curves": "Validation during training at each variant's best learning rate, a line for each seed.",
    "lengths": "Tested at lengths other than the training length. Hollow squares are published values.",
    "tradeoffs": "What a score costs: variants of one mechanism are joined. The staircase goes through those "
    "that no other beats, as cheap and better, or cheaper and as good; they are named.",
    "errors": "Geometric means over draws; the shading is their 95% t interval.",
    "cost": "Time and memory against length; both axes are logarithmic. A ring stands where a program "
    "becomes cheaper than full attention and stays so.",
    "rates": "How wide the window of working learning rates is: seeds as points, means joined.",
}
_MEANING = {
    "reproduced": "good",
    "did not reproduce": "bad",
    "inconclusive": "warn",
    "not comparable": "warn",
}


def page(
    results: Results, sheets: Sequence[Sheet], drawings: Mapping[str, str], warnings: Sequence[str] = ()
) -> str:
    """The whole page; `drawings` are SVG elements by name."""
    experiment = results.experiment
    first, *rest = sheets
    parts = [
        f"<h1>{escape(experiment['title'])}</h1>",
        f'<p class="claim">{escape(experiment["claim"])}</p>' if experiment.get("claim") else "",
        f'<p class="facts">{escape(_facts(results))}</p>',
        *(f'<p class="warning">{escape(warning)}</p>' for warning in warnings),
        f"<h2>Who wins</h2>{table(first)}",
        *(figure(name, drawing) for name, drawing in drawings.items()),
        *(f"<h2>{escape(sheet.title)}</h2>{table(sheet)}" for sheet in rest),
        "<h2>What was run</h2>",
        f"<pre>{escape(experiment['command'])}</pre>" if experiment.get("command") else "",
        details("About this experiment", f"<pre>{escape(experiment['doc'])}</pre>")
        if experiment.get("doc")
        else "",
        details(f"Every run ({len(results.cells)})", _runs(results)),
        details("Configuration of the first run of each variant", _configurations(results)),
        details("Versions", f"<pre>{escape(_versions(results))}</pre>"),
    ]
    return document(experiment["title"], parts)


def document(title: str, parts: Sequence[str]) -> str:
    """A page with this title in the window's frame and these parts one below the other."""
    return "\n".join(
        [
            "<!doctype html>",
            '<html lang="en"><head><meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>{escape(title)}</title>",
            f"<style>{_STYLE}</style></head><body><main>",
            *filter(None, parts),
            "</main></body></html>",
            "",
        ]
    )


def _facts(results: Results) -> str:
    experiment = results.experiment
    done = sum(cell.done for cell in results.cells)
    return " · ".join(
        filter(
            None,
            [
                f"scale {experiment['scale']}" if experiment.get("scale") else "",
                f"{done} of {len(results.cells)} runs finished",
                ", ".join(results.devices()),
                " to ".join(results.dates()),
                f"configuration {experiment['digest'][:12]}" if experiment.get("digest") else "",
            ],
        )
    )


def table(sheet: Sheet) -> str:
    heads = "".join(f'<th class="{column.kind}">{escape(column.name)}</th>' for column in sheet.columns)
    rows = []
    for row in sheet.rows:
        aside = ' class="aside"' if row[0].startswith(("baseline: ", "published: ")) else ""
        cells = "".join(
            f'<td class="{column.kind} {_MEANING.get(cell, "")}">{escape(cell)}</td>'
            for column, cell in zip(sheet.columns, row, strict=True)
        )
        rows.append(f"<tr{aside}>{cells}</tr>")
    notes = "".join(f"<li>{escape(note)}</li>" for note in sheet.notes)
    return _scrolling(heads, rows) + (f'<ul class="notes">{notes}</ul>' if notes else "")


def _scrolling(heads: str, rows: Sequence[str]) -> str:
    body = "\n".join(rows)
    return f'<div class="scroll"><table><thead><tr>{heads}</tr></thead><tbody>{body}</tbody></table></div>'


def figure(name: str, drawing: str) -> str:
    return f"<figure>{drawing}<figcaption>{escape(_CAPTIONS.get(name, name))}</figcaption></figure>"


def _runs(results: Results) -> str:
    heads = ("variant", "rate", "seed", "status", "steps", results.metric, "seconds", "message")
    rows = []
    for cell in results.cells:
        score = cell.score("test", results.metric)
        seconds = cell.result.get("seconds")
        row = (
            cell.label,
            f"{cell.learning_rate:g}",
            str(cell.seed),
            cell.status,
            str(cell.result.get("step", "")),
            "" if score is None else f"{score:.4f}",
            "" if seconds is None else f"{seconds:.0f}",
            cell.result.get("message", ""),
        )
        rows.append("<tr>" + "".join(f"<td>{escape(text)}</td>" for text in row) + "</tr>")
    return _scrolling("".join(f"<th>{escape(text)}</th>" for text in heads), rows)


def _configurations(results: Results) -> str:
    shown = []
    for label in results.labels:
        # Of kept results the experiment has them, once for each variant.
        config = next(
            (cell.config["config"] for cell in results.of(label) if cell.config.get("config")),
            results.experiment.get("settings", {}).get(label),
        )
        if config is not None:
            shown.append(
                f"<h3>{escape(label)}</h3><pre>{escape(json.dumps(config, indent=1, sort_keys=True))}</pre>"
            )
    return "".join(shown)


def _versions(results: Results) -> str:
    blocks = [
        "\n".join(f"{name} {version}" for name, version in versions)
        for versions in sorted(results.versions())
    ]
    return "\n\n".join(blocks)


def details(title: str, body: str) -> str:
    return f"<details><summary>{escape(title)}</summary>{body}</details>"
