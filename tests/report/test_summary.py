from __future__ import annotations

import itertools

import numpy as np
import pytest
from scipy import stats

from transformer_jax.report import sheets
from transformer_jax.report.results import read
from transformer_jax.report.summary import p_values, remarks, standing, summarize

pytestmark = pytest.mark.quick


def test_the_rate_is_chosen_on_validation_not_on_test(fabricate):
    scores = {"full": {0.1: [0.9, 0.9], 0.2: [0.5, 0.5]}}
    root = fabricate(scores, validation={("full", 0.1): 0.6, ("full", 0.2): 0.7})
    (summary,) = summarize(read(root))
    assert summary.best.learning_rate == 0.2
    assert summary.scores["test"] == {0: 0.5, 1: 0.5}


def test_lower_bits_per_byte_are_better(fabricate):
    (summary,) = summarize(
        read(fabricate({"full": {0.1: [2.0], 0.2: [1.0], 0.3: [1.1]}}, metric="bits_per_byte"))
    )
    assert summary.best.learning_rate == 0.2
    assert summary.window == "2 of 3"  # 1.0 and 1.1 ≤ 1.0 / 0.9


def test_a_rate_that_lost_a_seed_stands_behind(fabricate):
    (summary,) = summarize(read(fabricate({"full": {0.1: [0.8, 0.8], 0.2: [0.9, "diverged"]}})))
    assert summary.best.learning_rate == 0.1
    assert summary.counts == {"finished": 3, "diverged": 1}


def test_the_window_counts_rates_near_the_best(fabricate):
    (summary,) = summarize(
        read(fabricate({"full": {0.1: [1.0], 0.2: [0.91], 0.3: [0.89], 0.4: ["diverged"]}}))
    )
    assert summary.window == "2 of 4"


def test_a_variant_that_never_finished_has_no_score(fabricate):
    summaries = summarize(read(fabricate({"full": {0.1: [0.9]}, "linear": {0.1: ["failed"]}})))
    assert summaries[1].best is None
    assert summaries[1].counts == {"failed": 1}


def test_p_values_need_five_seeds_and_compare_with_the_first(fabricate):
    few = summarize(read(fabricate({"a": {0.1: [0.9] * 4}, "b": {0.1: [0.5] * 4}}, name="few")))
    assert p_values(few) == {}
    b = [0.5, 0.6, 0.4, 0.5, 0.45]
    many = summarize(read(fabricate({"a": {0.1: [0.9] * 5}, "b": {0.1: b}}, name="many")))
    assert set(p_values(many)) == {"b"}
    assert p_values(many)["b"] < 0.01


def test_standing_is_the_corrected_paired_test_against_the_best(fabricate):
    offsets = {"first": 0.5, "best": 0.62} | {f"near {i}": 0.61 for i in range(5)}
    told_apart_by_correction = 0
    for number in range(6):
        rng = np.random.default_rng(number)
        luck = rng.normal(size=6) * 0.05  # of a seed, shared by all: what pairing takes out
        scores = {label: list(o + luck + rng.normal(size=6) * 0.007) for label, o in offsets.items()}
        results = read(fabricate({k: {0.1: found} for k, found in scores.items()}, name=f"r{number}"))
        found = standing(results, summarize(results))

        best = max(scores, key=lambda label: np.mean(scores[label]))
        p = {label: stats.ttest_rel(scores[label], scores[best]).pvalue for label in offsets if label != best}
        worst, expected = 0.0, {best: "best"}
        for rank, label in enumerate(sorted(p, key=p.get)):
            worst = max(worst, (len(p) - rank) * p[label])
            if worst >= 0.05:
                expected[label] = "not distinguishable"
        assert found == expected
        told_apart_by_correction += any(p[label] < 0.05 for label in expected if label != best)
    assert told_apart_by_correction
    sheet = sheets.comparison(results, summarize(results))
    column = [c.name for c in sheet.columns].index("standing")
    assert {row[0]: row[column] for row in sheet.rows}["first"] == "–"


def test_below_five_seeds_standing_is_by_range(fabricate):
    scores = {"a": {0.1: [0.9, 0.7]}, "b": {0.1: [0.6, 0.72]}, "c": {0.1: [0.6, 0.69]}}
    results = read(fabricate(scores))
    assert standing(results, summarize(results)) == {"a": "best", "b": "range overlaps"}
    lower = read(fabricate(scores, name="lower", metric="perplexity"))
    assert standing(lower, summarize(lower))["c"] == "best"
    one = read(fabricate({"a": {0.1: [0.9]}}, name="one"))
    assert standing(one, summarize(one)) == {}


def test_costs_are_those_of_the_runs(fabricate):
    results = read(fabricate({"full": {0.1: [0.9, 0.8]}}))
    sheet = sheets.costs(results, summarize(results))
    (row,) = sheet.rows
    assert sheet.notes[-1] == "Of the time of a step at most 1.2% were spent waiting for data."
    assert row == ("full", "12,345", "64", "256", "2.5", "25", "3.0")


def test_everything_unusual_is_remarked(fabricate):
    results = read(
        fabricate({"a": {0.1: [0.9, "failed"], 0.2: [0.9, "diverged"]}, "b": {0.1: [0.5, "unfinished"]}})
    )
    text = "\n".join(remarks(results, summarize(results)))
    for expected in (
        "1 of 6 runs have not finished",
        "a, rate 0.1, seed 1 failed: out of memory",
        "a, rate 0.2, seed 1 diverged: loss is nan at step 7",
        "tuning budget differs",
        "2 seeds, shown as points",
        "brings its own short convolution",
    ):
        assert expected in text


PUBLISHED = {
    "source": "arXiv:2312.00752, Table 11",
    "tag": "exact",
    "precision": 0.0005,
    "selection": "one recipe",
    "rows": {"a": {"test": 0.9, "test/64": 1.0}, "b": {"test": 0.2}, "elsewhere": {"test": 1.0}},
    "notes": {"a": "kind of positions unstated"},
}


def test_verdicts_use_the_gap_between_the_variants_compared(fabricate):
    results = read(fabricate({"a": {0.1: [0.9, 0.9]}, "b": {0.1: [0.5, 0.9]}}, published=PUBLISHED))
    a, b = summarize(results)
    assert a.verdicts["test"].word == "reproduced"
    assert set(a.verdicts) == {"test"}  # no run on test/64
    # b: mean .7, half-width 2.54 > the difference .5: by the rule within, and said to be worth little.
    assert "published gap of 0.7" in b.verdicts["test"].why


def test_another_configuration_is_not_comparable(fabricate):
    departures = {"a": ["train.steps: 10, published with 20"]}
    (a,) = summarize(read(fabricate({"a": {0.1: [0.9, 0.9]}}, published=PUBLISHED, departures=departures)))
    assert a.verdicts["test"].word == "not comparable"


def test_best_of_grid_is_compared_with_best_of_grid_only(fabricate):
    (one,) = summarize(
        read(fabricate({"a": {0.1: [0.9, 0.9], 0.2: [0.9, 0.9]}}, name="1", published=PUBLISHED))
    )
    assert "the best of 2" in one.verdicts["test"].why
    grid = {**PUBLISHED, "selection": "best of grid"}
    (two,) = summarize(read(fabricate({"a": {0.1: [0.9, 0.9]}}, name="2", published=grid)))
    assert two.verdicts["test"].word == "not comparable"


def test_every_published_number_is_shown_with_its_source(fabricate):
    results = read(fabricate({"b": {0.1: [0.2, 0.2]}, "a": {0.1: [0.9, 0.9]}}, published=PUBLISHED))
    sheet = sheets.against_published(results, summarize(results))
    rows = {(row[0], row[1]): row for row in sheet.rows}
    numbers = {
        (label, test): value for label, row in PUBLISHED["rows"].items() for test, value in row.items()
    }
    assert {key: float(row[2]) for key, row in rows.items()} == numbers
    assert [row[0] for row in sheet.rows] == ["b", "a", "a", "elsewhere"]
    assert rows["a", "test"][3:5] == ("0.900 [0.900, 0.900]", "reproduced")
    assert rows["elsewhere", "test"][3:] == ("–",) * 4  # nothing of ours
    assert sheet.notes[0].startswith("Published: arXiv:2312.00752, Table 11 (exact")


def test_the_published_row_of_a_set_that_the_source_lacks_is_left_out(fabricate):
    tests = {"a": {"64": 1.0}, "b": {"64": 0.5}}
    results = read(fabricate({"a": {0.1: [0.9]}, "b": {0.1: [0.2]}}, tests=tests, published=PUBLISHED))
    rows = sheets.test_sets(results, summarize(results)).rows
    assert [row[0] for row in rows] == ["a", "published: a", "b"]
    assert not any(set(row[1:]) == {"–"} for row in rows)


def test_verdicts_follow_from_the_record_by_the_rule(fabricate):
    """Against the rule as the design states it, computed from the seeds with scipy's interval."""
    said = set()
    for number, (offset, noise, precision, other) in enumerate(
        itertools.product((0.0, 0.03, 0.2), (0.001, 0.05), (0.005, 0.05), (0.42, 0.9))
    ):
        ours = list(0.4 + offset + noise * np.array([-1.0, 0.3, 0.2, 0.6, -0.1]))
        published = {**PUBLISHED, "precision": precision, "rows": {"a": {"test": 0.4}, "b": {"test": other}}}
        root = fabricate({"a": {0.1: ours}, "b": {0.1: [0.5]}}, name=f"r{number}", published=published)
        verdict = summarize(read(root))[0].verdicts["test"]

        mean = np.mean(ours)
        low, high = stats.t.interval(0.95, df=4, loc=mean, scale=stats.sem(ours))
        tau = max(precision, (high - low) / 2)
        expected = "did not reproduce"
        if abs(mean - 0.4) <= tau:
            expected = "reproduced"
        elif tau > other - 0.4:
            expected = "inconclusive"
        assert verdict.word == expected
        assert verdict.difference == pytest.approx(mean - 0.4)
        assert verdict.tolerance == pytest.approx(tau)
        said.add(expected)
    assert said == {"reproduced", "inconclusive", "did not reproduce"}
