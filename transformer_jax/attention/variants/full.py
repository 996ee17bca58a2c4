"""Scaled dot-product attention between all tokens, multi-head to multi-query (arXiv:1706.03762)."""

from __future__ import annotations

from typing import Literal, get_args

import jax
import jax.numpy as jnp
from flax import nnx

from transformer_jax.attention.contract import Capability, Geometry
from transformer_jax.attention.engines import softmax_naive
from transformer_jax.attention.engines.softmax_mixer import CachedMixer
from transformer_jax.attention.engines.softmax_plan import band
from transformer_jax.errors import unknown

Execution = Literal["blocks", "naive"]


class Full(CachedMixer):
    """Every token sees every token, or, causal, every one up to itself.

    `Geometry.kv_heads` makes it multi-head (K = N), grouped-query (arXiv:2305.13245) or multi-query
    (K = 1, arXiv:1911.02150). `execution` changes no result: "blocks" has a block of scores in memory at a
    time; "naive" has all of them, as the baselines of efficiency tables do.
    """

    name = "full"
    paper = "arXiv:1706.03762"
    time = "T²"
    capability = Capability(
        notes={"cross": "every token sees the whole context; a layer for it is built with causal=False"}
    )

    execution: Execution = "blocks"

    def __init__(self, geometry: Geometry, *, execution: Execution = "blocks", rngs: nnx.Rngs):
        super().__init__(geometry, rngs=rngs)
        if execution not in get_args(Execution):
            raise unknown(f"value of {self.name}.execution", execution, get_args(Execution))
        self.execution = execution

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

    @property
    def no_kernel(self):
        return "all of its scores are to be in memory" if self.execution == "naive" else super().no_kernel

    def attend(self, q, k, v, plan, score, *, query, key, step=1):
        if self.execution == "naive":
            return softmax_naive.attend(q, k, v, score, query=query, key=key)
        return super().attend(q, k, v, plan, score, query=query, key=key, step=step)
