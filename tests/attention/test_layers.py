"""A stack of layers is one program in which XLA moves things about: it must not change what they compute."""

from __future__ import annotations

import jax
import numpy as np
import pytest
from flax import nnx

from transformer_jax.model.config import Transformer, mechanism
from transformer_jax.model.transformer import Model


@pytest.mark.parametrize("name", ["full", "linear", "gated_delta_net"])
def test_a_row_does_not_depend_on_the_size_of_its_batch(name):
    # 64 rows of 64 tokens: from here on XLA's CPU compiler once spoilt every layer but the first.
    config = Transformer(mixers=(mechanism(name),), layers=2, width=64, mlp="none")
    sizes = {"vocabulary": 128, "outputs": 128, "target": "token", "causal": True, "length": 64}
    skeleton, values = nnx.split(Model(config, **sizes, rngs=nnx.Rngs(0)))
    tokens = np.random.default_rng(0).integers(0, 128, (64, 64), dtype=np.int32)
    logits = jax.jit(lambda values, tokens: nnx.merge(skeleton, values)(tokens)[0])
    np.testing.assert_allclose(logits(values, tokens)[:4], logits(values, tokens[:4]), atol=1e-4)
