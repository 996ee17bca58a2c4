"""What the catalogue says of a mechanism is what its file says."""

from __future__ import annotations

from transformer_jax.attention.catalogue import find, options


def test_a_mechanism_has_the_options_of_its_own_constructor_and_no_others():
    assert options(find("linear")) == options(find("retention")) == {}
    assert options(find("based_taylor")) == {"feature_size": (int, 16)}
    assert options(find("delta_product")) == {"steps": (int, 2), "beta_max": (float, 2.0), "taps": (int, 4)}
