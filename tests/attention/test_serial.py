"""What recurrent networks claim: of their engine, of their memory and of what their heads mix."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from transformer_jax.attention.catalogue import build
from transformer_jax.attention.contract import Geometry, Layout
from transformer_jax.attention.engines.serial import serial

pytestmark = pytest.mark.quick


def normal(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), jnp.float32)


def test_chunks_change_neither_values_nor_gradients():
    x, state = normal(2, 23, 3), normal(2, 3, seed=1)
    starts = jnp.zeros((2, 23), bool).at[1, 9].set(True)
    valid = jnp.arange(23)[None] < jnp.array([[23], [15]])

    def step(h, x):
        h = jnp.tanh(h + x)
        return h, 2 * h

    def total(x, state, chunk):
        o, last = serial(step, x, state, jnp.zeros_like(state), starts=starts, valid=valid, chunk=chunk)
        return jnp.sum(jnp.where(valid[..., None], o, 0) ** 2) + jnp.sum(jnp.sin(last)), (o, last)

    run = jax.value_and_grad(total, argnums=(0, 1), has_aux=True)
    once, cut = run(x, state, 64), run(x, state, 5)
    for a, b in zip(jax.tree.leaves(once), jax.tree.leaves(cut), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
    o, last = once[0][1]
    np.testing.assert_allclose(o[1, 9], 2 * jnp.tanh(x[1, 9]), rtol=1e-6)
    np.testing.assert_allclose(last[1], o[1, 14] / 2, rtol=1e-6)


def heads_that_see(name: str) -> list[bool]:
    """Of two heads: does the hidden state of the first move what each of them gives next?"""
    mixer = build(name, Geometry(width=8, heads=2), rngs=nnx.Rngs(0))
    mixer.recurrent[...] = normal(*mixer.recurrent[...].shape)
    state = mixer.init_state(2)  # of a row whose first head is moved, and of one that is not
    moved = state["h"].reshape(2, 2, 4).at[0, 0].add(1.0)
    layout = Layout.plain(2, 1)
    gates, _ = mixer.streams(jnp.broadcast_to(normal(1, 1, 8), (2, 1, 8)), layout)
    h, _ = jax.jit(mixer.core)(gates, layout, state | {"h": moved.reshape(state["h"].shape)})
    h = np.asarray(h).reshape(2, 2, 4)
    return (np.abs(h[0] - h[1]).max(-1) > 1e-4).tolist()


def test_heads_of_slstm_mix_alone_and_lstm_and_gru_have_one_memory():
    assert heads_that_see("slstm") == [True, False]
    assert heads_that_see("lstm") == heads_that_see("gru") == [True, True]
