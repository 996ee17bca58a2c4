"""Convolutional mechanisms against the other way to compute them."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from transformer_jax.attention.catalogue import build
from transformer_jax.attention.contract import Geometry, Layout
from transformer_jax.attention.engines import state_space
from transformer_jax.conformance.subject import agree

pytestmark = pytest.mark.quick

CLOSE = 1e-6
"""‖found − wanted‖ / ‖wanted‖ in float32: some tens of terms summed in another order, 6e-8 each."""


def normal(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), jnp.float32)


def test_h3_is_the_convolution_of_keys_times_values_with_the_kernel_of_its_state_space():
    """The form in which its paper trains it."""
    length, size = 75, 4
    mixer = build("h3", Geometry(width=8, heads=2), part=size, state_size=8, taps=2, rngs=nnx.Rngs(0))
    streams, _ = mixer.streams(normal(1, length, 8), Layout.plain(1, length))
    o, _ = mixer.core(streams, Layout.plain(1, length), None)
    a, c, d = (np.asarray(x)[..., None] for x in mixer.weights().values())
    kernel = np.real(np.sum(c * np.exp(a * np.arange(length)), axis=1))
    kernel[:, :1] += d
    q, k, v = (np.asarray(streams[name][0], np.float64) for name in "qkv")
    kv = k[..., :, None] * v[..., None, :]
    spectrum = (
        np.fft.rfft(kv, 2 * length, axis=0) * np.fft.rfft(kernel.T, 2 * length, axis=0)[..., None, None]
    )
    y = np.fft.irfft(spectrum, axis=0)[:length]
    agree(o[0], np.einsum("tnh,tnhm->tnm", q, y), within=CLOSE, what="outputs")


def test_no_result_of_the_state_space_depends_on_the_chunk():
    q, k, v = (normal(2, 21, 3, 4, seed=seed) for seed in range(3))
    a = -jnp.abs(normal(3, 2, seed=3)) + 1j * normal(3, 2, seed=4)
    c, d = normal(3, 2, seed=5) + 1j * normal(3, 2, seed=6), normal(3, seed=7)
    segments = jnp.asarray(np.repeat([[0, 1, 2], [3, 3, 4]], 7, axis=1), jnp.int32)
    layout = Layout(Layout.plain(2, 21).positions, segments, jnp.array([21, 16]))
    wanted, last = state_space.mix(q, k, v, a=a, c=c, d=d, layout=layout, chunk=21)
    found, state = state_space.mix(q, k, v, a=a, c=c, d=d, layout=layout, chunk=4)
    valid = layout.valid[..., None, None]
    agree(found * valid, wanted * valid, within=CLOSE, what="outputs")
    agree(state["S"], last["S"], within=CLOSE, what="the state")
