"""The levels of a Fenwick tree, and what a recurrence over them reduces to."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from transformer_jax.attention.catalogue import build, find
from transformer_jax.attention.contract import Geometry, Layout
from transformer_jax.attention.engines import fenwick
from transformer_jax.attention.variants.log_linear import buckets
from transformer_jax.conformance.subject import agree

pytestmark = pytest.mark.quick

CLOSE = 1e-6
"""‖found − wanted‖ / ‖wanted‖ in float32: some tens of terms summed in another order, 6e-8 each."""


def test_the_highest_bit_that_differs_is_the_bucket():
    t = jnp.arange(37)
    found = np.asarray(fenwick.level(t[:, None], t[None]))
    earlier = np.tri(37, dtype=bool)
    np.testing.assert_array_equal(found[earlier], buckets(37)[earlier])
    assert fenwick.levels(37) == buckets(37).max() + 1 == 7


def test_with_every_level_weighed_the_same_it_is_mamba2():
    geometry, length = Geometry(width=16, heads=2, length=90), 90
    mixer = build("log_linear", geometry, state_size=4, rngs=nnx.Rngs(0))
    x = jnp.asarray(np.random.default_rng(0).standard_normal((2, length, 16)), jnp.float32)
    layout = Layout.plain(2, length)
    streams, _ = mixer.streams(x, layout)
    found, _ = mixer.core(streams | {"weight": jnp.ones_like(streams["weight"])}, layout, None)
    same = build("mamba2", geometry, state_size=4, rngs=nnx.Rngs(0))
    wanted, _ = find("mamba2").core(same, streams, layout, None)
    agree(found, wanted, within=CLOSE, what="outputs")


def test_no_result_depends_on_the_chunk():
    draw = np.random.default_rng(0)
    normal = lambda *shape: jnp.asarray(draw.standard_normal(shape), jnp.float32)
    q, k, v = normal(2, 41, 3, 4), normal(2, 41, 3, 4), normal(2, 41, 3, 5)
    log_decay, weight = -jnp.abs(normal(2, 41, 3)), normal(2, 41, 3, 7)
    layout = Layout(Layout.plain(2, 41).positions, None, jnp.array([41, 18]))
    nothing = fenwick.empty(2, 3, 7, 4, 5, jnp.float32)

    def mix(chunk, state):
        return fenwick.mix(
            q, k, v, log_decay=log_decay, weight=weight, layout=layout, state=state, chunk=chunk
        )

    valid = layout.valid[..., None, None]
    whole, parts = mix(41, nothing), mix(6, nothing)
    agree(parts[0] * valid, whole[0] * valid, within=CLOSE, what="outputs")
    agree(parts[1]["S"], whole[1]["S"], within=CLOSE, what="the state")
    for chunk in (1, 8, 64):  # the simpler form of whole rows
        agree(mix(chunk, None)[0] * valid, whole[0] * valid, within=CLOSE, what=f"outputs, chunk {chunk}")
