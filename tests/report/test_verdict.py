from __future__ import annotations

import pytest

from transformer_jax.report.verdict import judge

pytestmark = pytest.mark.quick


def test_within_the_sources_precision_is_reproduced():
    verdict = judge([0.78, 0.78, 0.78], 0.80, precision=0.02, gap=0.5)
    assert verdict.word == "reproduced"
    assert verdict.tolerance == 0.02


def test_our_half_width_is_the_tolerance_where_it_is_larger():
    # mean .5, s = .01, n = 3: half-width 4.303 · .01 / √3 = .0248
    near = judge([0.49, 0.50, 0.51], 0.52, precision=0.0005, gap=0.5)
    far = judge([0.49, 0.50, 0.51], 0.53, precision=0.0005, gap=0.5)
    assert near.tolerance == pytest.approx(0.02484, rel=1e-3)
    assert (near.word, far.word) == ("reproduced", "did not reproduce")
    assert "95% half-width of 3 seeds" in near.why


def test_a_tolerance_above_the_published_gap_is_inconclusive():
    # mean .5, s = .1: half-width .248, above the gap of .1 but below the difference of .4
    verdict = judge([0.4, 0.5, 0.6], 0.9, precision=0.0005, gap=0.1)
    assert verdict.word == "inconclusive"
    assert "gap of 0.1" in verdict.why


def test_a_match_that_is_only_noise_says_so():
    verdict = judge([0.3, 0.5], 0.9, precision=0.0005, gap=0.1)
    assert verdict.word == "reproduced"
    assert "says little" in verdict.why


def test_without_a_gap_there_is_nothing_to_be_inconclusive_about():
    assert judge([0.4, 0.5, 0.6], 0.99, precision=0.0005, gap=None).word == "did not reproduce"


def test_one_seed_is_reproduced_only_within_the_sources_precision():
    assert judge([1.0], 1.0, precision=0.0005, gap=0.5).word == "reproduced"
    assert judge([0.9], 1.0, precision=0.0005, gap=0.5).word == "inconclusive"


def test_a_departure_is_not_comparable_however_near():
    verdict = judge([1.0, 1.0], 1.0, precision=0.1, gap=0.5, departures=["train.steps 100, published 200"])
    assert verdict.word == "not comparable"
    assert "train.steps 100" in verdict.why


def test_nothing_finished_is_not_comparable():
    assert judge([], 1.0, precision=0.1, gap=None).word == "not comparable"


def test_the_border_counts_as_within():
    assert judge([0.3, 0.3], 0.2, precision=0.1, gap=0.5).word == "reproduced"
