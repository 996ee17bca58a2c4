"""Softmax over a pattern: block-sparse attention with any score, in parallel over a sequence.

`attend` computes, for every query i and head, over the keys j that a `Plan` lists for it,

    o_i = Σ_j exp(s_ij − lse_i) v_j,    lse_i = log Σ_j exp(s_ij),    s_ij = score(query_i, key_j),

where the score is any function of one head: scaled products, a mask (−inf), a differentiable bias.
Results of several calls over disjoint keys `merge` into one softmax; extra logits without a value
(attention sinks) are the merge with (0, sink).

Memory is that of one row of scores (a block of queries by the keys it sees) at a time: rows follow one
another, and the backward pass computes them again from the saved lse, as in arXiv:2205.14135. The
backward pass differentiates the score itself, so every modification of it has its gradient for free.

Streams are dictionaries of arrays whose rank says whom they belong to: (T,) to the position, (B, T) to
the token, (B, T, N, …) to a head. Keys may have fewer heads K; query head n reads key head n // (N/K).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jax import lax

from transformer_jax.attention.engines.softmax_plan import Blocks, Plan
from transformer_jax.attention.engines.softmax_rows import Score, Streams, accurate, softmax_rows


def attend(
    query: Streams, key: Streams, value: jax.Array, plan: Plan, score: Score, shared: Streams | None = None
) -> tuple[jax.Array, jax.Array]:
    """Attention of T queries to the keys of `plan`.

    Args:
      query: streams of length T; at least one belongs to heads, and gives their number N.
      key: streams of length S.
      value: (B, S, K, H).
      score: reads nothing that is traced but its arguments.
      shared: what the score needs besides, per head (N, …) or scalars; differentiable.

    Returns:
      o (B, T, N, H) and lse (B, T, N), in float32 or wider. A query that sees nothing has o = 0 and
      lse = −inf, and gives no gradient.
    """
    batch, kv_heads = value.shape[0], value.shape[2]
    heads = next(x.shape[2] for x in query.values() if x.ndim > 2)
    padding = plan.rows * plan.block - plan.queries
    query = {name: query_layout(x, kv_heads, padding) for name, x in query.items()}
    key = {name: key_layout(x, plan.missing_keys) for name, x in key.items()}
    value = key_layout(value, plan.missing_keys)
    shared = {
        name: x.reshape(kv_heads, heads // kv_heads, *x.shape[1:]) if x.ndim else x
        for name, x in (shared or {}).items()
    }
    lists = {n: jnp.asarray(g.lists, jnp.int32) for n, g in enumerate(plan.groups) if isinstance(g, Blocks)}
    alone = [x.ndim < 2 for x in jax.tree.leaves((query, key, value))] + [x.ndim < 4 for x in lists.values()]
    tile = heads * plan.block * max((g.length for g in plan.groups), default=1)
    parts = sequential_parts(batch, tile)
    o, lse = over_batch(softmax_rows(plan, score), (query, key, value, lists), alone, shared, parts)
    o = jnp.moveaxis(o.reshape(batch, heads, *o.shape[3:]), 1, 2)
    lse = jnp.moveaxis(lse.reshape(batch, heads, -1), 1, 2)
    return o[:, : plan.queries], lse[:, : plan.queries]


def merge(parts: Sequence[tuple[jax.Array, jax.Array]]) -> tuple[jax.Array, jax.Array]:
    """One softmax from (o (…, H), lse (…)) over disjoint sets of keys, differentiable in both."""
    parts = list(parts)
    if len(parts) == 1:
        return parts[0]
    top = lax.stop_gradient(jnp.stack([lse for _, lse in parts]).max(0))
    top = jnp.where(jnp.isfinite(top), top, 0)
    weights = [jnp.exp(lse - top) for _, lse in parts]
    total = sum(weights)
    seen = total > 0
    total = jnp.where(seen, total, 1)
    o = sum((w / total)[..., None] * o for w, (o, _) in zip(weights, parts, strict=True))
    return jnp.asarray(o), jnp.where(seen, top + jnp.log(total), -jnp.inf)


def sink(o: jax.Array, lse: jax.Array, logits: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Lets an extra logit per head (N,) take part in the softmax, with the value 0."""
    return merge([(o, lse), (jnp.zeros_like(o), jnp.broadcast_to(logits.astype(lse.dtype), lse.shape))])


def product(q: jax.Array, k: jax.Array) -> jax.Array:
    """q kᵀ in at least float32: (t, H), (s, H) → (t, s)."""
    return jnp.einsum("th,sh->ts", q, k, preferred_element_type=accurate(q.dtype))


# Layout. Heads lead, (B, K, G, T, …) for queries with G = N/K. Keys are stored with the token as the
# last axis, (B, K, …, S): then the products that make the gradients of k and v have no transposed
# left side, which on CPUs runs at a third of the speed.


def query_layout(x: jax.Array, kv_heads: int, padding: int) -> jax.Array:
    x = pad_tokens(x, padding)
    if x.ndim < 3:
        return x
    x = jnp.moveaxis(x, 2, 1)
    return x.reshape(x.shape[0], kv_heads, -1, *x.shape[2:])


def key_layout(x: jax.Array, padding: int) -> jax.Array:
    x = pad_tokens(x, padding)
    return jnp.moveaxis(x, 1, -1) if x.ndim > 2 else x


def pad_tokens(x: jax.Array, padding: int) -> jax.Array:
    tokens = min(x.ndim - 1, 1)
    return jnp.pad(x, [(0, padding if axis == tokens else 0) for axis in range(x.ndim)]) if padding else x


def sequential_parts(batch: int, tile: int) -> int:
    """Into how many parts the batch is cut that are computed one after the other.

    A tile of scores that fits the cache of a CPU is worth more than many at once; elsewhere only
    memory counts.
    """
    room = 2**19 if jax.default_backend() == "cpu" else 2**27
    together = max((n for n in range(1, batch + 1) if batch % n == 0 and n * tile <= room), default=1)
    return batch // together


def over_batch(rows: Callable, batched: tuple, alone: list[bool], shared: Streams, parts: int):
    """Runs `rows` on `parts` parts of the batch in turn; the leaves that stand `alone` have no batch."""
    if parts == 1:
        return rows(*batched, shared)
    leaves, tree = jax.tree.flatten(batched)
    # Part p has the sequences p, p + parts, …: on a mesh that shards the batch, a part is spread over it.
    cut = {
        n: jnp.moveaxis(x.reshape(-1, parts, *x.shape[1:]), 1, 0)
        for n, x in enumerate(leaves)
        if not alone[n]
    }

    def part(cut):
        return rows(*jax.tree.unflatten(tree, [cut.get(n, x) for n, x in enumerate(leaves)]), shared)

    return jax.tree.map(lambda x: jnp.moveaxis(x, 0, 1).reshape(-1, *x.shape[2:]), lax.map(part, cut))
