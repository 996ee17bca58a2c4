"""The tables of a report: the comparison, the learning rates, the test sets, the published numbers."""

from __future__ import annotations

from collections.abc import Mapping

from transformer_jax.report.results import Results, length_of
from transformer_jax.report.statistics import spread
from transformer_jax.report.summary import (
    SIGNIFICANT,
    WINDOW,
    Summary,
    p_values,
    remarks,
    standing,
    summarize,
)
from transformer_jax.report.table import Column, Sheet

NOTHING = "–"
NAMES = {"accuracy": "accuracy", "bits_per_byte": "bits per byte", "squared_error": "squared error"}
BASELINES = {
    "chance": "a blind guess among the possible answers",
    "majority": "always the most frequent answer",
    "unigram": "each byte by how frequent it is",
    "bigram": "by what is frequent after the token or byte before",
    "gzip": "the compressor, on the test text",
    "lzma": "the compressor, on the test text",
    "naive Bayes of bytes": "a classifier by how often each byte occurs",
}
"""What the baselines of the tasks do, which no attention is needed for."""


def sheets(results: Results) -> list[Sheet]:
    """Every table that these results fill, the comparison first."""
    summaries = summarize(results)
    found = [comparison(results, summaries), costs(results, summaries)]
    if any(len(summary.rates) > 1 for summary in summaries):
        found.append(learning_rates(results, summaries))
    if results.tests:
        found.append(test_sets(results, summaries))
    if results.experiment.get("published"):
        found.append(against_published(results, summaries))
    return found


def comparison(results: Results, summaries: list[Summary]) -> Sheet:
    """Who wins: a row for each variant, then one for each trivial baseline."""
    metric = metric_name(results)
    arrow = "↑" if results.higher_is_better else "↓"
    p, stands = p_values(summaries), standing(results, summaries)
    columns = [
        Column("variant", "words"),
        Column(f"test {metric} {arrow}"),
        Column("standing", "words"),
        Column("seeds"),
        Column("window"),
        Column("best rate"),
        Column("runs", "words"),
        Column("each seed"),
    ]
    rows = [
        [
            summary.label,
            central(summary.scores.get("test", {})),
            stands.get(summary.label, NOTHING),
            str(len(summary.scores.get("test", {}))),
            summary.window,
            f"{summary.best.learning_rate:g}" if summary.best else NOTHING,
            ", ".join(f"{n} {status}" for status, n in summary.counts.items()),
            ", ".join(f"{score:.3f}" for score in summary.scores.get("test", {}).values()) or NOTHING,
        ]
        for summary in summaries
    ]
    for name, value in results.baselines.items():
        rows.append([f"baseline: {name}", f"{value:.3f}", *[NOTHING] * (len(columns) - 2)])
    if p:
        columns.append(Column(f"p against {summaries[0].label}"))
        for row in rows:
            row.append(f"{p[row[0]]:.2g}" if row[0] in p else NOTHING)
    notes = [
        f"Scores at the learning rate with the best validation {metric}; mean over seeds, with "
        + ("the 95% t interval." if p else "the range."),
        f"Window: how many of the rates tried reach {WINDOW:.0%} of the variant's best validation {metric}.",
        *([_standing_explained(bool(p))] if stands else []),
        *_baselines(results),
        *(["p: paired t-test over seeds, Holm-corrected."] if p else []),
        *remarks(results, summaries),
    ]
    return Sheet(
        title=results.experiment["title"],
        columns=tuple(columns),
        rows=tuple(map(tuple, rows)),
        notes=tuple(notes),
    )


def _standing_explained(tested: bool) -> str:
    if not tested:
        return "Standing: the best mean, and whose range overlaps the range of the best."
    return (
        f"Standing: the best mean, and what a paired t-test over seeds does not tell from it (p of "
        f"{SIGNIFICANT:g} or more, Holm-corrected over all comparisons with the best)."
    )


def costs(results: Results, summaries: list[Summary]) -> Sheet:
    """Parameters, decode state, FLOPs, time and memory of each variant."""
    rows = [
        (
            summary.label,
            _number(summary.cost.parameters, ",d"),
            _number(summary.cost.state_size, ",d"),
            _number(summary.cost.state_bytes, ",d"),
            _number(summary.cost.flops and summary.cost.flops / 1e9, ".4g"),
            _number(summary.cost.step_ms, ".3g"),
            _number(summary.cost.temporaries and summary.cost.temporaries / 2**20, ".1f"),
        )
        for summary in summaries
    ]
    waits = [summary.cost.data_wait for summary in summaries if summary.cost.data_wait is not None]
    names = ("parameters", "state", "state, bytes", "GFLOPs a step", "step, ms", "temporaries, MiB")
    return Sheet(
        title="What it costs",
        columns=(Column("variant", "words"), *map(Column, names)),
        rows=tuple(rows),
        notes=(
            "State: numbers kept per sequence while decoding at full length, and their bytes.",
            "GFLOPs: matrix products of a training step over all devices, recomputation included. Step: the "
            "median over seeds, compilation and evaluation left out. Temporaries: what the training program "
            "holds on a device beside its arguments.",
            *([f"On {', '.join(results.devices())}."] if results.devices() else []),
            *(
                [f"Of the time of a step at most {max(waits):.1%} were spent waiting for data."]
                if waits
                else []
            ),
        ),
    )


def _baselines(results: Results) -> list[str]:
    said = [f"{name}, {BASELINES[name]}" for name in results.baselines if name in BASELINES]
    return [f"Baselines, which need no attention: {'; '.join(said)}."] if said else []


def learning_rates(results: Results, summaries: list[Summary]) -> Sheet:
    """Validation score by variant and learning rate."""
    rates = sorted({rate.learning_rate for summary in summaries for rate in summary.rates})
    rows = []
    for summary in summaries:
        mine = {rate.learning_rate: rate for rate in summary.rates}
        cells = []
        for value in rates:
            rate = mine.get(value)
            ended = {c.status for c in rate.cells} & {"diverged", "failed"} if rate else set()
            score = f"{rate.validation:.3f}" if rate and rate.validation is not None else ""
            cells.append(" ".join(filter(None, [score, *sorted(ended)])) or NOTHING)
        rows.append((summary.label, *cells))
    return Sheet(
        title=f"Validation {metric_name(results)} by learning rate",
        columns=(Column("variant", "words"), *(Column(f"{rate:g}") for rate in rates)),
        rows=tuple(rows),
    )


def test_sets(results: Results, summaries: list[Summary]) -> Sheet:
    """The metric on every named test set, the published row under ours."""
    published = results.experiment.get("published") or {"rows": {}}
    tests = results.tests
    # A source that gives none of these sets has its number beside the published ones, not here.
    theirs = {label: values for label, values in published["rows"].items() if values.keys() & set(tests)}
    rows: list[tuple[str, ...]] = []
    for summary in summaries:
        rows.append((summary.label, *(central(summary.scores.get(test, {})) for test in tests)))
        if summary.label in theirs:
            rows.append(_published_row(summary.label, theirs.pop(summary.label), tests))
    rows += [_published_row(label, values, tests) for label, values in theirs.items()]
    shown = any(row[0].startswith("published: ") for row in rows)
    what = "length" if all(length_of(test) for test in tests) else "set"
    notes = (f"Published: {published['source']} ({published['tag']}).",) if shown else ()
    return Sheet(
        title=f"Test {metric_name(results)} by test {what}",
        columns=(Column("variant", "words"), *(Column(test.removeprefix("test/")) for test in tests)),
        rows=tuple(rows),
        notes=notes,
    )


def against_published(results: Results, summaries: list[Summary]) -> Sheet:
    """Published, ours, difference and verdict; the reason stands below, once for each."""
    published = results.experiment["published"]
    rows: list[tuple[str, ...]] = []
    reasons: dict[tuple[str, str, str], list[str]] = {}
    ours = {summary.label: summary for summary in summaries}
    elsewhere = [label for label in published["rows"] if label not in ours]
    for label in [*(label for label in ours if label in published["rows"]), *elsewhere]:
        for test, value in published["rows"][label].items():
            verdict = ours[label].verdicts.get(test) if label in ours else None
            if verdict is None:
                rows.append((label, test, f"{value:.3f}", *[NOTHING] * 4))
                continue
            rows.append(
                (
                    label,
                    test,
                    f"{value:.3f}",
                    central(ours[label].scores[test]),
                    verdict.word,
                    # Rounded first, so that there is no -0.000.
                    NOTHING if verdict.difference is None else f"{round(verdict.difference, 3) + 0.0:+.3f}",
                    NOTHING if verdict.tolerance is None else f"{verdict.tolerance:.2g}",
                )
            )
            reasons.setdefault((label, verdict.word, verdict.why), []).append(test)
    notes = [f"Published: {published['source']} ({published['tag']}; precision {published['precision']:g})."]
    if any(row[3] == NOTHING for row in rows):
        notes.append("Rows without ours are for orientation: nothing here ran that, or was tested on it.")
    for (label, word, why), tests in reasons.items():
        where = "" if len(tests) == len(published["rows"][label]) else f" on {', '.join(tests)}"
        notes.append(f"{label}{where}: {word}: {why}.")
    return Sheet(
        title="Beside the published numbers",
        columns=(
            Column("variant", "words"),
            Column("test set", "words"),
            Column("published"),
            Column("ours"),
            Column("verdict", "words"),
            Column("difference"),
            Column("τ"),
        ),
        rows=tuple(rows),
        notes=tuple(notes),
    )


def metric_name(results: Results) -> str:
    return NAMES.get(results.metric, results.metric)


def central(scores: Mapping[int, float]) -> str:
    """Mean with interval (from five seeds on) or range."""
    if not scores:
        return NOTHING
    s = spread(list(scores.values()))
    if s.half_width is not None:
        return f"{s.mean:.3f} ± {s.half_width:.3f}"
    return f"{s.mean:.3f} [{s.low:.3f}, {s.high:.3f}]" if s.count > 1 else f"{s.mean:.3f}"


def _number(value: float | None, form: str) -> str:
    return NOTHING if value is None else format(value, form)


def _published_row(label: str, values: Mapping[str, float], tests: list[str]) -> tuple[str, ...]:
    return (f"published: {label}", *(f"{values[t]:.3f}" if t in values else NOTHING for t in tests))
