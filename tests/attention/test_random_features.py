"""What random features estimate, and how they are drawn."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from transformer_jax.attention.catalogue import build
from transformer_jax.attention.contract import Geometry, Layout
from transformer_jax.attention.gates import unit
from transformer_jax.conformance.subject import agree

pytestmark = pytest.mark.quick

H = 16

CLOSE = 1e-6
"""‖found − wanted‖ / ‖wanted‖ in float32: some tens of terms summed in another order, 6e-8 each."""


def normal(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), jnp.float32)


def softmax_attention(q, k, v, scale):
    return jax.nn.softmax(scale * q @ k.T) @ v


def estimate(name, q, k, v, **options):
    mixer = build(name, Geometry(width=H, causal=False), rngs=nnx.Rngs(1), **options)
    weights = {name: w[0] for name, w in mixer.weights().items()}
    return mixer.definition(q, k, v, **weights)


def error(found, wanted):
    return np.linalg.norm(found - wanted) / np.linalg.norm(wanted)


@pytest.mark.parametrize("draws", ["orthogonal", "independent"])
@pytest.mark.parametrize("name", ["performer", "performer_trigonometric"])
def test_performer_estimates_softmax_attention(name, draws):
    q, k, v = (0.5 * normal(24, H, seed=seed) for seed in range(3))
    wanted = softmax_attention(q, k, v, H**-0.5)
    errors = [error(estimate(name, q, k, v, features=m, draws=draws), wanted) for m in (64, 4096)]
    # 64 times the features should give an eighth of the error: half of it is luck's margin.
    assert errors[1] < 0.1 and errors[1] < errors[0] / 2


def test_rfa_estimates_softmax_attention_between_unit_vectors():
    q, k, v = (normal(24, H, seed=seed) for seed in range(3))
    q, k = unit(q), unit(k)
    wanted = softmax_attention(q, k, v, 1.0)
    errors = [error(estimate("rfa", q, k, v, features=m), wanted) for m in (64, 4096)]
    # As above; the estimates of these weights, which hardly differ, are of either sign.
    assert errors[1] < 0.15 and errors[1] < errors[0] / 2


@pytest.mark.parametrize("draws", ["orthogonal", "independent"])
def test_draws_are_what_they_are_called(draws):
    w = np.asarray(
        build("performer", Geometry(width=H), features=H, draws=draws, rngs=nnx.Rngs(0)).projections
    )
    lengths = np.linalg.norm(w, axis=1)
    cosines = np.abs(w @ w.T / np.outer(lengths, lengths) - np.eye(H))
    right_angles = cosines.max() < 16 * CLOSE  # rows of a QR in float32
    assert right_angles == (draws == "orthogonal")


def test_a_gate_that_writes_nothing_divides_no_zero_by_zero():
    mixer = build("rfa_gated", Geometry(width=H), rngs=nnx.Rngs(0))
    x = normal(1, 12, H)
    for logit in (-200.0, 200.0):
        mixer.gate.kernel[...] = 0 * mixer.gate.kernel[...]
        mixer.gate.bias[...] = jnp.full(1, logit)
        streams, _ = mixer.streams(x, Layout.plain(1, 12))
        o, _ = mixer.core(streams, Layout.plain(1, 12), None)
        assert np.isfinite(o).all() and np.abs(o[0, -1]).max() > 0
        if logit < 0:  # g = 0: each token reads what it wrote itself
            agree(o, streams["v"], within=CLOSE, what="outputs")
