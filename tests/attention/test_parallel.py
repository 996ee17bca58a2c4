"""Mechanisms side by side in one layer."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from transformer_jax.attention.contract import Geometry, Layout
from transformer_jax.attention.parallel import ParallelMixer
from transformer_jax.attention.variants.full import Full
from transformer_jax.attention.variants.hyena import Hyena
from transformer_jax.attention.variants.sliding_window import SlidingWindow
from transformer_jax.errors import BadInput

pytestmark = pytest.mark.quick


class FullTwice(ParallelMixer):
    parts = (Full, Full)

    def __init__(self, geometry, *, shares=None, rngs):
        super().__init__(geometry, options=({}, {}), shares=shares, rngs=rngs)


class WindowAndHyena(ParallelMixer):
    parts = (SlidingWindow, Hyena)


def test_full_attention_beside_full_attention_is_full_attention():
    geometry = Geometry(width=16, heads=4)
    both = FullTwice(geometry, shares=(1, 3), rngs=nnx.Rngs(0))
    assert [mixer.geometry.heads for mixer in both.mixers] == [1, 3]
    whole = Full(geometry, rngs=nnx.Rngs(1))
    for name in ("query", "key", "value"):
        kernels = [getattr(mixer, name).kernel[...] for mixer in both.mixers]
        getattr(whole, name).kernel[...] = jnp.concatenate(kernels, axis=1)
    outs = [
        (share / 4) ** 0.5 * mixer.out.kernel[...] for share, mixer in zip((1, 3), both.mixers, strict=True)
    ]
    whole.out.kernel[...] = jnp.concatenate(outs, axis=0)
    x = jnp.asarray(np.random.default_rng(0).standard_normal((2, 9, 16)), jnp.float32)
    layout = Layout.plain(2, 9)
    np.testing.assert_allclose(both(x, layout)[0], whole(x, layout)[0], rtol=1e-4, atol=1e-5)


def test_what_one_part_refuses_the_whole_refuses_with_every_reason():
    refused = WindowAndHyena.capability.refused
    assert set(refused) == {"cross", "bidirectional", "packing"}
    assert SlidingWindow.capability.refused["cross"] in refused["cross"]
    assert Hyena.capability.refused["cross"] in refused["cross"]
    assert WindowAndHyena.capability.sequence == "gathered"
    assert WindowAndHyena.own_convolution


def test_heads_that_do_not_divide_are_themselves_divided_or_refused():
    halves = FullTwice(Geometry(width=16, heads=1), rngs=nnx.Rngs(0))
    assert [(m.geometry.heads, m.geometry.head_size) for m in halves.mixers] == [(1, 8), (1, 8)]
    with pytest.raises(BadInput, match="divide so"):
        FullTwice(Geometry(width=15, heads=3), rngs=nnx.Rngs(0))
