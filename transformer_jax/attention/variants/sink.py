"""Attention with a learned sink: the softmax may give its weight to nothing (gpt-oss, arXiv:2508.10925)."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx

from transformer_jax.attention.engines import softmax
from transformer_jax.attention.variants.full import Full


class Sink(Full):
    """Full attention in whose denominator stands one more, learned logit per head, without a value.

    Section 2.2 of the paper, on attention, calls it a bias of the denominator. The logit is neither divided
    by √H nor turned, and a query's weights add up to less than 1. With logit 0 it is the softmax with one
    added to its denominator.
    """

    name = "sink"
    paper = "arXiv:2508.10925"

    def __init__(self, geometry, *, rngs: nnx.Rngs):
        super().__init__(geometry, rngs=rngs)
        self.sinks = nnx.Param(jnp.zeros(geometry.heads))

    def definition(self, q, k, v, sink):
        """Section 2.2, in symbols: o_i = Σ_j exp(s_ij) v_j / (exp(sink) + Σ_j exp(s_ij)), s = Q Kᵀ / √H."""
        scores = q @ k.T / jnp.sqrt(q.shape[-1])
        if self.geometry.causal:
            i, j = jnp.arange(len(q))[:, None], jnp.arange(len(k))[None]
            scores = jnp.where(j <= i, scores, -jnp.inf)
        with_sink = jnp.concatenate([scores, sink[:, None]], axis=1)
        return jax.nn.softmax(with_sink, axis=-1)[:, :-1] @ v

    def streams(self, x, layout, state=None, context=None):
        streams, moved = super().streams(x, layout, state, context)
        sinks = self.sinks[...].astype(jnp.promote_types(jnp.float32, x.dtype))
        return streams | {"sink": jnp.broadcast_to(sinks, streams["q"].shape[:3])}, moved

    def normalized(self, o, lse, streams):
        return softmax.sink(o, lse, streams["sink"])[0]
