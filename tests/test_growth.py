"""Growth with the length, of costs whose law is known."""

from __future__ import annotations

import math

import pytest

from transformer_jax.growth import below_from, exponent

pytestmark = pytest.mark.quick


def test_the_exponent_of_a_power_is_the_power_and_of_one_length_there_is_none():
    assert exponent((length, 3 * length**1.5) for length in (64, 256, 4096)) == pytest.approx(1.5)
    assert exponent([(64, 1.0), (64, 2.0)]) is None


@pytest.mark.parametrize(
    ("mine", "first"),
    [
        ({1: 1, 2: 1, 4: 1}, 1),
        ({1: 3, 2: 1, 4: 5, 8: 1}, 8),
        ({8: 1, 1: 9, 2: 1, 4: 1}, 2),
        ({1: 1, 2: 2}, math.inf),  # as much is not below
        ({1: 1, 4: math.inf}, math.inf),
        ({16: 1}, None),
    ],
)
def test_a_cost_is_below_from_where_it_stays_below(mine, first):
    assert below_from(mine, {1: 2, 2: 2, 4: 4, 8: 8}) == first
