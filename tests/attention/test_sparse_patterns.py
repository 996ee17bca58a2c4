"""Sparse patterns at the options at which they are another mechanism, and whom their tokens see."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from transformer_jax.attention.catalogue import build
from transformer_jax.attention.contract import Geometry, Layout
from transformer_jax.attention.definition import effective_matrix

LENGTH = 23


def made(name, *, causal, **options):
    g = Geometry(width=8, heads=2, kv_heads=1, length=LENGTH, causal=causal)
    return build(name, g, rngs=nnx.Rngs(0), **options)


def x():
    return jnp.asarray(np.random.default_rng(0).standard_normal((2, LENGTH, 8)), jnp.float32)


def seen(mixer, i):
    """The keys to which the token at i gives weight."""
    return list(np.flatnonzero(effective_matrix(mixer, x())[0, 0, i]))


@pytest.mark.parametrize("causal", [True, False])
def test_a_window_without_gaps_is_a_sliding_window(causal):
    mixers = (
        made("dilated", causal=causal, window=4, dilation=1),
        made("sliding_window", causal=causal, window=4),
    )
    found, wanted = (mixer(x(), Layout.plain(2, LENGTH))[0] for mixer in mixers)
    np.testing.assert_allclose(found, wanted, atol=1e-6)


def test_a_dilated_window_counts_the_tokens_that_are_seen():
    assert seen(made("dilated", causal=True, window=3, dilation=4), 15) == [7, 11, 15]
    assert seen(made("dilated", causal=False, window=3, dilation=4), 15) == [7, 11, 15, 19]
