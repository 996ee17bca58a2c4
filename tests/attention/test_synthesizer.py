"""What the Synthesizers synthesize."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from transformer_jax.attention.contract import Geometry, Layout
from transformer_jax.attention.variants.synthesizer_dense import SynthesizerDense
from transformer_jax.attention.variants.synthesizer_random import SynthesizerRandom
from transformer_jax.conformance.subject import run

pytestmark = pytest.mark.quick


def normal(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), jnp.float32)


def test_the_logits_of_a_token_are_an_mlp_of_it():
    mixer = SynthesizerDense(Geometry(width=6, length=9, causal=False), hidden=4, rngs=nnx.Rngs(0))
    mixer.bias[...] = normal(9, 1, 1, seed=1)
    mixer.first.bias[...] = normal(4, seed=2)
    x = normal(1, 5, 6)
    hidden = jax.nn.relu(x[0] @ mixer.first.kernel[...] + mixer.first.bias[...][None])
    logits = hidden @ mixer.second[...][:5, 0].T + mixer.bias[...][:5, 0].T
    wanted = jax.nn.softmax(logits) @ (x[0] @ mixer.value.kernel[...]) @ mixer.out.kernel[...]
    np.testing.assert_allclose(mixer(x, Layout.plain(1, 5))[0][0], wanted, rtol=1e-4, atol=1e-6)


def test_factors_are_their_product():
    """Plain, padded, packed and decoding, a factorized matrix is the one that it multiplies to."""
    geometry = Geometry(width=8, heads=2, length=12)
    factorized, whole = (SynthesizerRandom(geometry, rank=r, rngs=nnx.Rngs(0)) for r in (3, None))
    whole.value, whole.out = factorized.value, factorized.out
    whole.R[...] = jnp.einsum("ntr,nsr->nts", factorized.R1[...], factorized.R2[...])
    x, plain = normal(2, 7, 8), Layout.plain(2, 7)
    segments = jnp.array([[0, 0, 0, 1, 1, 1, 1]] * 2)
    packed = Layout(jnp.array([[0, 1, 2, 0, 1, 2, 3]] * 2), segments)
    for layout in (plain, Layout(plain.positions, None, jnp.array([4, 7])), packed):
        for state in (None, factorized.init_state(2)):
            y, wanted = (run(mixer, x, layout, state)[0] for mixer in (factorized, whole))
            np.testing.assert_allclose(y, wanted, rtol=1e-4, atol=1e-5)
