"""Checks inside a model: layers stack, and a gradient reaches every parameter."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from transformer_jax.conformance.subject import Subject
from transformer_jax.model.config import Transformer, mechanism
from transformer_jax.model.transformer import Model


def trains_in_a_model(subject: Subject) -> None:
    """In a model of two layers under scan, every parameter receives a finite gradient, and at least
    one element of each a gradient that is not zero."""
    config = Transformer(
        mixers=(mechanism(subject.mixer.name, **subject.options),), width=16, heads=2, mlp="none"
    )
    model = Model(
        config, vocabulary=11, outputs=11, target="token", causal=subject.causal, length=48, rngs=nnx.Rngs(0)
    )
    graph, learned, rest = nnx.split(model, nnx.Param, ...)
    tokens = jnp.asarray(np.random.default_rng(0).integers(0, 11, (2, 48)))

    @jax.jit
    @jax.grad
    def gradient(learned):
        logits, _ = nnx.merge(graph, learned, rest)(tokens)
        return -jnp.mean(jnp.take_along_axis(jax.nn.log_softmax(logits), tokens[..., None], axis=-1))

    for path, leaf in jax.tree.leaves_with_path(gradient(learned)):
        name = jax.tree_util.keystr(path)
        assert np.isfinite(leaf).all(), f"the gradient of {name} is not finite"
        assert np.abs(leaf).max() > 0, f"no gradient reaches {name}"
