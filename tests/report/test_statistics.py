from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from transformer_jax.report.statistics import frontier, half_width, holm, paired_p, paired_spread, spread

pytestmark = pytest.mark.quick


def test_below_five_seeds_there_is_a_range_and_no_interval():
    s = spread([0.2, 0.4, 0.9, 0.5])
    assert (s.count, s.mean, s.low, s.high, s.half_width) == (4, pytest.approx(0.5), 0.2, 0.9, None)


def test_the_interval_is_scipys():
    values = np.random.default_rng(0).normal(size=7)
    low, high = stats.t.interval(0.95, df=6, loc=values.mean(), scale=stats.sem(values))
    assert spread(list(values)).half_width == pytest.approx((high - low) / 2)


def test_two_points_by_hand():
    # Deviations ±0.05: s = 0.0707, s/√2 = 0.05, t(0.975, 1) = 12.706.
    assert half_width([0.45, 0.55]) == pytest.approx(12.706 * 0.05, rel=1e-4)
    assert half_width([0.5]) is None


def test_paired_p_is_scipys_and_pairs_by_seed():
    rng = np.random.default_rng(1)
    a = {seed: rng.normal() for seed in range(6)}
    b = {seed: a[seed] + rng.normal() * 0.1 + 0.2 for seed in reversed(range(6))}
    expected = stats.ttest_rel([a[s] for s in range(6)], [b[s] for s in range(6)]).pvalue
    assert paired_p(a, b) == pytest.approx(expected)


def test_no_p_value_below_five_common_seeds():
    assert paired_p({s: 0.1 * s for s in range(6)}, {s: 0.2 * s for s in range(2, 9)}) is None


def test_equal_scores_have_p_one_and_constant_differences_p_zero():
    a = {s: 0.1 * s for s in range(5)}
    assert paired_p(a, a) == 1.0
    assert paired_p(dict.fromkeys(range(5), 1.0), dict.fromkeys(range(5), 0.5)) == 0.0


def test_holm_by_hand():
    # Sorted .01 .03 .04 times 3 2 1: .03 .06 .04, made monotone: .03 .06 .06.
    assert holm({"c": 0.04, "a": 0.01, "b": 0.03}) == pytest.approx({"a": 0.03, "b": 0.06, "c": 0.06})
    assert holm({"a": 0.9, "b": 0.8}) == {"a": 1.0, "b": 1.0}
    assert holm({}) == {}


def test_the_interval_of_paired_differences_is_scipys():
    rng = np.random.default_rng(2)
    a = {seed: rng.normal() for seed in range(6)}
    b = {seed: a.get(seed, 0.0) + rng.normal() * 0.1 for seed in (5, 4, 3, 2, 1, 9)}
    found = paired_spread(a, b)
    test = stats.ttest_rel([a[s] for s in range(1, 6)], [b[s] for s in range(1, 6)])
    low, high = test.confidence_interval(0.95)
    assert (found.count, found.mean) == (5, pytest.approx((low + high) / 2))
    assert found.half_width == pytest.approx((high - low) / 2)
    assert paired_spread({0: 1.0}, {1: 2.0}) is None


def test_the_frontier_is_what_nothing_dominates():
    rng = np.random.default_rng(4)
    for _ in range(50):
        points = [tuple(map(float, point)) for point in rng.integers(0, 5, size=(8, 2))]

        def dominated(point, points=points):
            return any(q != point and q[0] <= point[0] and q[1] >= point[1] for q in points)

        assert sorted(frontier(points)) == [i for i, point in enumerate(points) if not dominated(point)]
    assert frontier([]) == []
