"""Softmax attention as the baselines of papers have it: all T² scores in memory, the gradient by JAX itself.

For measuring against: an efficiency table that has "the Transformer" in it mostly means this.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax

from transformer_jax.attention.engines.softmax_rows import Score, Streams, accurate, dot, per_head
from transformer_jax.attention.engines.softmax_tokens import grouped, heads_first


def attend(
    q: jax.Array, k: jax.Array, v: jax.Array, score: Score, *, query: Streams, key: Streams
) -> tuple[jax.Array, jax.Array]:
    """`softmax.attend` of all queries to all keys, in three steps: scores, softmax, product."""
    batch, queries, heads, kv_heads = *q.shape[:3], k.shape[2]

    def of_queries(x):
        return jnp.moveaxis(grouped(x, kv_heads, 2), 1, 3) if x.ndim > 2 else x

    q, query = jax.tree.map(of_queries, (q, query))
    k, v, key = jax.tree.map(lambda x: heads_first(x, 2), (k, v, key))
    s = per_head(score, dot("bkgth,bksh->bkgts", q, k), query, key, {}).astype(accurate(v.dtype))
    top = lax.stop_gradient(jnp.max(s, axis=-1, keepdims=True))
    top = jnp.where(jnp.isfinite(top), top, 0)  # a query that sees nothing
    p = jnp.exp(s - top)
    total = jnp.sum(p, axis=-1, keepdims=True)
    some = jnp.where(total > 0, total, 1)
    o = dot("bkgts,bksh->bkgth", (p / some).astype(v.dtype), v)
    lse = jnp.where(total > 0, top + jnp.log(some), -jnp.inf)
    o, lse = (jnp.moveaxis(x, 3, 1).reshape(batch, queries, heads, -1) for x in (o, lse))
    return o, lse[..., 0]
