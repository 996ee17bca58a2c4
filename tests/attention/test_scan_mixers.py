"""What the mechanisms on the element-wise scan claim of their states."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from transformer_jax.attention.catalogue import build
from transformer_jax.attention.contract import Geometry, Layout
from transformer_jax.measure.program import largest_array

pytestmark = pytest.mark.quick


def mixer(name: str, **options):
    return build(name, Geometry(width=8, heads=2), rngs=nnx.Rngs(0), **options)


def normal(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), jnp.float32)


def test_min_gru_holds_the_token_where_its_gate_is_1_and_the_past_where_it_is_0():
    gru = mixer("min_gru")
    streams, _ = gru.streams(normal(1, 6, 8), Layout.plain(1, 6))
    z = jnp.asarray([1, 0, 0, 1, 0, 1], jnp.float32)
    o, _ = gru.core(streams | {"z": jnp.broadcast_to(z[None, :, None], (1, 6, 8))}, Layout.plain(1, 6), None)
    held = np.asarray([0, 0, 0, 3, 3, 5])
    np.testing.assert_array_equal(o, streams["v"][:, held])


def test_a_positive_candidate_keeps_the_state_of_min_gru_positive():
    x, layout = normal(1, 20, 8), Layout.plain(1, 20)
    for candidate, positive in (("linear", False), ("positive", True)):
        gru = mixer("min_gru", candidate=candidate)
        o, _ = gru.core(gru.streams(x, layout)[0], layout, None)
        assert (np.asarray(o) > 0).all() == positive


def test_rg_lru_starts_with_its_decays_between_those_of_the_paper():
    a = jnp.exp(-8 * jnp.logaddexp(mixer("rg_lru").Lambda[...], 0))
    assert (a > 0.9 - 1e-4).all() and (a < 0.999 + 1e-4).all() and np.ptp(a) > 0.03


def test_rg_lru_that_keeps_all_writes_nothing_and_has_a_gradient():
    """At a = 1 the input scale √(1 − a²) is 0, where the root has no derivative."""
    lru, layout = mixer("rg_lru"), Layout.plain(1, 5)
    streams, _ = lru.streams(normal(1, 5, 8), layout)

    def total(log_decay):
        return jnp.sum(lru.core(streams | {"log_decay": log_decay}, layout, None)[0] ** 2)

    value, gradient = jax.value_and_grad(total)(jnp.zeros_like(streams["log_decay"]))
    assert value == 0 and np.isfinite(gradient).all()


def test_the_states_of_mamba_exist_for_a_chunk_only():
    """Neither forward nor backward holds all T of them: those are state_size times a stream."""
    length, state_size = 1024, 16
    mamba, layout = mixer("mamba", state_size=state_size), Layout.plain(1, length)

    def step(x):
        return jax.grad(lambda x: jnp.sum(mamba(x, layout)[0] ** 2))(x)

    largest = largest_array(step, jax.ShapeDtypeStruct((1, length, 8), jnp.float32))
    assert largest < length * 8 * state_size / 2
