"""Scaled dot-product attention between all tokens, multi-head to multi-query (arXiv:1706.03762)."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from transformer_jax.attention.contract import Capability
from transformer_jax.attention.engines.softmax_mixer import CachedMixer
from transformer_jax.attention.engines.softmax_plan import band


class Full(CachedMixer):
    """Every token sees every token, or, causal, every one up to itself.

    `Geometry.kv_heads` makes it multi-head (K = N), grouped-query (arXiv:2305.13245) or multi-query
    (K = 1, arXiv:1911.02150).
    """

    name = "full"
    paper = "arXiv:1706.03762"
    time = "T²"
    capability = Capability(
        notes={"cross": "every token sees the whole context; a layer for it is built with causal=False"}
    )

    def definition(self, q, k, v):
        """Attention(Q, K, V) = softmax(Q Kᵀ / √d_k) V  (equation 1)."""
        scores = q @ k.T / jnp.sqrt(q.shape[-1])
        if self.geometry.causal:
            i, j = jnp.arange(len(q))[:, None], jnp.arange(len(k))[None]
            scores = jnp.where(j <= i, scores, -jnp.inf)
        return jax.nn.softmax(scores, axis=-1) @ v

    def sees(self, i, j):
        return j <= i if self.geometry.causal else None

    def plan(self, queries, keys):
        return band(queries, keys, after=0 if self.geometry.causal else None)
