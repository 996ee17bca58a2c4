"""Checks inside a model: layers stack, and a gradient reaches every parameter."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from transformer_jax.conformance.subject import Subject, agree, jit, jit_as_users, optimized
from transformer_jax.model.config import Transformer, mechanism
from transformer_jax.model.transformer import Model


def batch_changes_nothing(subject: Subject) -> None:
    """In a model of two layers the logits of a row are the same in a batch of 64 and in one of 4. (A CPU
    compiler has been seen to break this, see `transformer_jax.compiler`.)"""
    with jax.enable_x64(False):
        graph, values = nnx.split(_model(subject, width=64, heads=1, length=64))
        tokens = np.random.default_rng(0).integers(0, 11, (64, 64), np.int32)
        run = lambda values, tokens: nnx.merge(graph, values)(tokens)[0]
        both = lambda values, tokens: jax.vjp(lambda v: run(v, tokens), values)[0]
        few = jit(run)(values, tokens[:4])
        for name, program in (("forward", run), ("with its gradient", both)):
            with optimized(True):
                logits = jit_as_users(program)(values, tokens)
            # Float32 sums of another order, through two layers.
            agree(logits[:4], few, within=1e-4, what=f"logits in a batch of 64, {name}")


def _model(subject: Subject, *, width: int, heads: int, length: int) -> Model:
    """Two layers of the mechanism."""
    chosen = mechanism(subject.mixer.name, **subject.options)
    return Model(
        Transformer(mixers=(chosen,), width=width, heads=heads, mlp="none"),
        vocabulary=11,
        outputs=11,
        target="token",
        causal=subject.causal,
        length=length,
        rngs=nnx.Rngs(0),
    )


def trains_in_a_model(subject: Subject) -> None:
    """In a model of two layers under scan, every parameter receives a finite gradient, and at least
    one element of each a gradient that is not zero."""
    model = _model(subject, width=16, heads=2, length=48)
    graph, learned, rest = nnx.split(model, nnx.Param, ...)
    tokens = np.random.default_rng(0).integers(0, 11, (2, 48))

    @jit
    @jax.grad
    def gradient(learned):
        logits, _ = nnx.merge(graph, learned, rest)(tokens)
        return -jnp.mean(jnp.take_along_axis(jax.nn.log_softmax(logits), tokens[..., None], axis=-1))

    for path, leaf in jax.tree.leaves_with_path(gradient(learned)):
        name = jax.tree_util.keystr(path)
        assert np.isfinite(leaf).all(), f"the gradient of {name} is not finite"
        assert np.abs(leaf).max() > 0, f"no gradient reaches {name}"
