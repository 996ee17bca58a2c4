"""The figures of a report, as matplotlib figures that read in light and in dark."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterator
from typing import Any, Literal

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from transformer_jax.report.results import Cell, Results, length_of
from transformer_jax.report.sheets import metric_name
from transformer_jax.report.summary import Summary, summarize

# Okabe and Ito's palette without its yellow and black: told apart by colour-blind readers, on white
# and on near-black.
PALETTE = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9")
DASHES = ("-", "--", ":", "-.")

# Ink is one odd colour, which `svg` turns into the page's own text colour.
INK = "#010203"
STYLE = {
    "font.size": 10,
    "font.family": "sans-serif",
    "svg.fonttype": "none",
    "text.color": INK,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.18,
    "grid.color": INK,
    "legend.frameon": False,
}


def figures(results: Results) -> dict[str, Figure]:
    """Every figure that these results fill, by file name."""
    summaries = summarize(results)
    wanted: dict[str, Callable[[Axes, Results, list[Summary]], None]] = {"scores": scores, "curves": curves}
    if any(length_of(test) for test in results.tests):
        wanted["lengths"] = lengths
    if any(len(summary.rates) > 1 for summary in summaries):
        wanted["rates"] = rates
    found = {}
    with matplotlib.rc_context(STYLE):
        for name, draw in wanted.items():
            tall = 0.9 + 0.32 * (len(summaries) + 1) if name == "scores" else 3.6
            figure = Figure(figsize=(7.2, tall), layout="constrained")
            draw(figure.add_subplot(), results, summaries)
            found[name] = figure
    return found


def scores(axes: Axes, results: Results, summaries: list[Summary]) -> None:
    """A line for each variant: its seeds as points, its mean as a bar; baselines as dashes."""
    for row, (summary, look) in enumerate(zip(summaries, looks(), strict=False)):
        values = list(summary.scores.get("test", {}).values())
        axes.plot(values, [row] * len(values), "o", color=look["color"], alpha=0.55, markersize=7)
        if values:
            axes.plot([np.mean(values)], [row], "|", color=look["color"], markersize=18, markeredgewidth=2.5)
    for value, name in _merged(_baselines(results, summaries)).items():
        axes.axvline(value, color=INK, linestyle="--", linewidth=0.8, alpha=0.6)
        place: dict[str, Any] = {
            "xycoords": ("data", "axes fraction"),
            "rotation": 35,
            "ha": "left",
            "va": "bottom",
        }
        axes.annotate(name, (value, 1.02), fontsize=7, **place)
    axes.set_yticks(range(len(summaries)), [summary.label for summary in summaries])
    axes.set_ylim(len(summaries) - 0.5, -0.5)
    axes.set_xlabel(f"test {metric_name(results)}")
    axes.grid(axis="y", visible=False)
    if results.higher_is_better:
        axes.set_xlim(-0.02, 1.02)


def curves(axes: Axes, results: Results, summaries: list[Summary]) -> None:
    """Validation metric against steps at each variant's best rate, a line for each seed."""
    for summary, look in zip(summaries, looks(), strict=False):
        label: str | None = summary.label
        for cell in summary.best.cells if summary.best else ():
            steps, values = _curve(cell, results.metric)
            if steps:
                axes.plot(steps, values, label=label, **look, linewidth=1.6, alpha=0.85)
                label = None
    for value in _baselines(results, summaries).values():
        axes.axhline(value, color=INK, linestyle="--", linewidth=0.8, alpha=0.4)
    axes.set_xlabel("training step")
    axes.set_ylabel(f"validation {metric_name(results)}")
    _finish(axes, results)


def lengths(axes: Axes, results: Results, summaries: list[Summary]) -> None:
    """Metric against test length; the training length is a line, published values are hollow."""
    published = (results.experiment.get("published") or {"rows": {}})["rows"]
    tests = {length: test for test in results.tests if (length := length_of(test))}
    for summary, look in zip(summaries, looks(), strict=False):
        found = {n: list(summary.scores.get(test, {}).values()) for n, test in tests.items()}
        found = {n: values for n, values in found.items() if values}
        axes.plot(
            list(found), [np.mean(v) for v in found.values()], "o", **look, label=summary.label, markersize=4
        )
        axes.vlines(
            list(found), [min(v) for v in found.values()], [max(v) for v in found.values()], look["color"]
        )
        theirs = {n: published.get(summary.label, {}).get(test) for n, test in tests.items()}
        theirs = {n: value for n, value in theirs.items() if value is not None}
        if theirs:
            axes.plot(
                list(theirs),
                list(theirs.values()),
                "s",
                color=look["color"],
                markerfacecolor="none",
                linestyle=":",
                linewidth=0.8,
                label=f"{summary.label}, published",
            )
    trained = results.experiment.get("length")
    if trained:
        axes.axvline(trained, color=INK, linestyle="--", linewidth=0.8, alpha=0.6)
        axes.annotate(" trained", (trained, 0), xycoords=("data", "axes fraction"), fontsize=7, va="bottom")
    axes.set_xscale("log", base=2)
    axes.set_xticks(list(tests), [str(length) for length in tests])
    axes.minorticks_off()
    axes.set_xlabel("test length")
    axes.set_ylabel(f"test {metric_name(results)}")
    _finish(axes, results)


def rates(axes: Axes, results: Results, summaries: list[Summary]) -> None:
    """Validation metric against the learning rate: how wide is the window?"""
    for summary, look in zip(summaries, looks(), strict=False):
        means = {r.learning_rate: r.validation for r in summary.rates if r.validation is not None}
        axes.plot(list(means), list(means.values()), **look, label=summary.label)
        for rate in summary.rates:
            seeds = [cell.score("validation", results.metric) for cell in rate.cells]
            seeds = [score for score in seeds if score is not None]
            axes.plot(
                [rate.learning_rate] * len(seeds), seeds, "o", color=look["color"], alpha=0.5, markersize=4
            )
    axes.set_xscale("log")
    tried = sorted({rate.learning_rate for summary in summaries for rate in summary.rates})
    axes.set_xticks(tried, [f"{rate:g}" for rate in tried])
    axes.minorticks_off()
    axes.set_xlabel("learning rate")
    axes.set_ylabel(f"validation {metric_name(results)}")
    _finish(axes, results)


def drawn(figure: Figure, name: str, kind: Literal["svg", "png"], **how: Any) -> bytes:
    """The figure as a file, the same for the same figure."""
    out = io.BytesIO()
    metadata: dict[str, Any] = {"Date": None} if kind == "svg" else {}
    with matplotlib.rc_context({**STYLE, "svg.hashsalt": name}):
        figure.savefig(out, format=kind, metadata=metadata, dpi=160, **how)
    return out.getvalue()


def svg(figure: Figure, name: str) -> str:
    """The figure as an SVG element that a page can hold: no declarations, the page's ink, ids of its own."""
    text = drawn(figure, name, "svg", transparent=True).decode()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r' xmlns(:\w+)?="[^"]*"', "", text)
    text = re.sub(r'\bid="([A-Za-z][\w.]*_\d+)"', rf'id="{name}-\1"', text)
    return text.replace(INK, "currentColor")


def _curve(cell: Cell, metric: str) -> tuple[list[int], list[float]]:
    points = [
        (line["step"], line[metric])
        for line in cell.curve
        if line.get("split") == "validation" and metric in line
    ]
    return [step for step, _ in points], [value for _, value in points]


def looks() -> Iterator[dict[str, Any]]:
    for dash in DASHES:
        for color in PALETTE:
            yield {"color": color, "linestyle": dash}


def _baselines(results: Results, summaries: list[Summary]) -> dict[str, float]:
    """Those that share a scale with the scores: one far worse than every variant would flatten them."""
    seeds = [score for summary in summaries for score in summary.scores.get("test", {}).values()]
    if results.higher_is_better or not seeds:
        return results.baselines
    return {name: value for name, value in results.baselines.items() if value <= 1.5 * max(seeds)}


def _merged(baselines: dict[str, float]) -> dict[float, str]:
    """Value -> names: those that nearly coincide share a label, or one would hide the other."""
    near = 0.02 * max(baselines.values(), default=1.0)
    merged: dict[float, str] = {}
    for name, value in sorted(baselines.items(), key=lambda item: item[1]):
        same = next((other for other in merged if abs(other - value) <= near), None)
        merged[value if same is None else same] = name if same is None else f"{merged[same]}, {name}"
    return merged


def _finish(axes: Axes, results: Results) -> None:
    if results.higher_is_better:
        axes.set_ylim(-0.03, 1.03)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(loc="center left", bbox_to_anchor=(1, 0.5), fontsize=8)
