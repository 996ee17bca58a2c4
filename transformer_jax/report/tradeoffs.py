"""Score against what it costs: decode state, FLOPs and time of a step, each with its frontier."""

from __future__ import annotations

from collections.abc import Callable

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, LogLocator

from transformer_jax.report.plots import INK, STYLE, looks
from transformer_jax.report.results import Results
from transformer_jax.report.sheets import metric_name
from transformer_jax.report.statistics import frontier
from transformer_jax.report.summary import Summary, summarize

COSTS: dict[str, Callable[[Summary], float | None]] = {
    "decode state, bytes per sequence": lambda summary: summary.cost.state_bytes,
    "FLOPs of a training step": lambda summary: summary.cost.flops,
    "time of a training step, ms": lambda summary: summary.cost.step_ms,
}
"""What a score may cost, on the axis."""


def points(
    summaries: list[Summary], cost: Callable[[Summary], float | None]
) -> dict[str, tuple[float, float]]:
    """label -> (cost, mean test score), of the variants that have both."""
    found = {}
    for summary in summaries:
        price, scores = cost(summary), list(summary.scores.get("test", {}).values())
        if price and scores:
            found[summary.label] = (float(price), float(np.mean(scores)))
    return found


def best(found: dict[str, tuple[float, float]], higher_is_better: bool) -> list[str]:
    """The labels of the frontier, the cheapest first: nothing else is as cheap and better."""
    labels, sign = list(found), 1 if higher_is_better else -1
    return [labels[i] for i in frontier([(cost, sign * score) for cost, score in found.values()])]


def drawable(summaries: list[Summary]) -> dict[str, dict[str, tuple[float, float]]]:
    """axis -> points, of the costs in which at least two variants differ."""
    found = {axis: points(summaries, cost) for axis, cost in COSTS.items()}
    return {axis: some for axis, some in found.items() if len({cost for cost, _ in some.values()}) > 1}


def figures(results: Results) -> dict[str, Figure]:
    """The figure "tradeoffs": a panel for each cost; none where no cost tells the variants apart.

    Variants of one mechanism share a colour and are joined, the cheapest first.
    """
    summaries = summarize(results)
    panels = drawable(summaries)
    if not panels:
        return {}
    of = {v["label"]: "+".join(v.get("mechanisms", [v["label"]])) for v in results.experiment["variants"]}
    groups: dict[str, list[str]] = {}
    for summary in summaries:
        groups.setdefault(of[summary.label], []).append(summary.label)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(max(7.2, 3.6 * len(panels)), 4.2), layout="constrained")
        drawn = figure.subplots(1, len(panels), squeeze=False)[0]
        for axes, (axis, found) in zip(drawn, panels.items(), strict=True):
            for (name, labels), look in zip(groups.items(), looks(), strict=False):
                own = sorted(found[label] for label in labels if label in found)
                axes.plot(*np.array(own).reshape(-1, 2).T, "o", **look, label=name, markersize=5)
            _draw_frontier(axes, found, results.higher_is_better)
            axes.set_xscale("log")
            # Powers of ten alone would leave a narrow axis without a number.
            axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axes.xaxis.set_major_formatter(EngFormatter(sep=""))
            axes.minorticks_off()
            axes.set_xlabel(axis)
            if results.higher_is_better:
                axes.set_ylim(-0.03, 1.08)
        drawn[0].set_ylabel(f"test {metric_name(results)}")
        handles, names = drawn[0].get_legend_handles_labels()
        figure.legend(handles, names, loc="outside lower center", ncols=4, fontsize=8)
    return {"tradeoffs": figure}


def _draw_frontier(axes: Axes, found: dict[str, tuple[float, float]], higher_is_better: bool) -> None:
    """A staircase through what nothing beats, its corners named."""
    labels = best(found, higher_is_better)
    costs, scores = zip(*(found[label] for label in labels), strict=True)
    axes.step(costs, scores, where="post", color=INK, linewidth=0.9, alpha=0.5, zorder=0)
    for label in labels:
        axes.annotate(label, found[label], xytext=(3, 4), textcoords="offset points", fontsize=7)
