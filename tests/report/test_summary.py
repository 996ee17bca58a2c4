from __future__ import annotations

import pytest

from transformer_jax.report.results import read
from transformer_jax.report.summary import p_values, remarks, summarize

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
