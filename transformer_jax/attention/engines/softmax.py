"""Softmax over a pattern: block-sparse attention with any score, in parallel over a sequence.

`attend` computes, for every query i and head, over the keys j that a `Plan` lists for it,

    o_i = Σ_j exp(s_ij − lse_i) v_j,    lse_i = log Σ_j exp(s_ij),    s_ij = score(q_i k_jᵀ, query_i, key_j),

where the score is any function of the products of one head and of what else is known of its queries and
keys: a scale, a mask (−inf), a differentiable bias.
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
from transformer_jax.attention.engines.softmax_rows import Score, Streams, softmax_rows


def attend(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    plan: Plan,
    score: Score,
    *,
    query: Streams | None = None,
    key: Streams | None = None,
    shared: Streams | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Attention of T queries to the keys of `plan`.

    Args:
      q: (B, T, N, H).
      k: (B, S, K, H).
      v: (B, S, K, H), whose H may be another.
      score: reads nothing that is traced but its arguments.
      query: streams of length T that the score reads.
      key: streams of length S that the score reads.
      shared: what the score needs besides, per head (N, …) or scalars; differentiable.

    Returns:
      o (B, T, N, H) and lse (B, T, N), in float32 or wider. A query that sees nothing has o = 0 and
      lse = −inf, and gives no gradient.
    """
    batch, kv_heads, groups = q.shape[0], k.shape[2], q.shape[2] // k.shape[2]
    more_queries, more_keys = plan.rows * plan.block - plan.queries, plan.missing_keys
    k, v = heads_first(k, more_keys), heads_first(v, more_keys)
    inputs = (
        grouped(heads_first(q, more_queries), kv_heads),
        turned(k),
        v,
        lax.stop_gradient((k, turned(v))),
        {name: grouped(heads_first(x, more_queries), kv_heads) for name, x in (query or {}).items()},
        {name: heads_first(x, more_keys) for name, x in (key or {}).items()},
        {n: jnp.asarray(g.lists, jnp.int32) for n, g in enumerate(plan.groups) if isinstance(g, Blocks)},
    )
    shared = {
        name: x.reshape(kv_heads, groups, *x.shape[1:]) if x.ndim else x for name, x in (shared or {}).items()
    }
    tile = groups * plan.block * max((g.length for g in plan.groups), default=1)
    rows = softmax_rows(plan, score)
    heads_at = jax.tree.map(lambda x: 1 if x.ndim > 2 else ALONE, inputs)
    heads_at = (*heads_at, jax.tree.map(lambda x: 0 if x.ndim else ALONE, shared))
    rows = in_turn(rows, sequential_parts(kv_heads, tile), heads_at, 1)
    batch_at = jax.tree.map(lambda x: 0 if x.ndim > 1 else ALONE, inputs)
    batch_at = (*batch_at, jax.tree.map(lambda x: ALONE, shared))
    rows = in_turn(rows, sequential_parts(batch, kv_heads * tile), batch_at, 0)
    o, lse = rows(*inputs, shared)
    o = jnp.moveaxis(o.reshape(batch, kv_heads * groups, *o.shape[3:]), 1, 2)
    lse = jnp.moveaxis(lse.reshape(batch, kv_heads * groups, -1), 1, 2)
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


# Layout: heads lead, (B, K, S, …) for keys and (B, K, G, T, …) for queries with G = N/K.


def heads_first(x: jax.Array, padding: int) -> jax.Array:
    """(B, T, N, …) → (B, N, T + padding, …); streams without heads are only padded."""
    tokens = min(x.ndim - 1, 1)
    x = jnp.pad(x, [(0, padding if axis == tokens else 0) for axis in range(x.ndim)]) if padding else x
    return jnp.moveaxis(x, 2, 1) if x.ndim > 2 else x


def grouped(x: jax.Array, kv_heads: int) -> jax.Array:
    """(B, N, …) → (B, K, G, …)."""
    return x.reshape(x.shape[0], kv_heads, -1, *x.shape[2:]) if x.ndim > 2 else x


def turned(x: jax.Array) -> jax.Array:
    """(B, K, S, H) → (B, K, H, S), in memory: without the barrier the products would read x itself."""
    return lax.optimization_barrier(jnp.swapaxes(x, 2, 3))


def sequential_parts(count: int, tile: int) -> int:
    """Into how many equal parts `count` tiles of scores are cut, to compute one part after the other.

    Scores that fit the cache of a CPU are worth more than many at once; elsewhere only memory counts.
    """
    room = 2**19 if jax.default_backend() == "cpu" else 2**27
    together = max((n for n in range(1, count + 1) if count % n == 0 and n * tile <= room), default=1)
    return count // together


ALONE = -1


def in_turn(f: Callable, parts: int, axes: tuple, out_axis: int) -> Callable:
    """f over `parts` parts of an axis one after the other; `axes` says where each leaf has it, or ALONE."""
    if parts == 1:
        return f

    def whole(*inputs):
        leaves, tree = jax.tree.flatten(inputs)
        at = jax.tree.leaves(axes)
        cut = {n: split(x, at[n]) for n, x in enumerate(leaves) if at[n] != ALONE}

        def part(cut):
            return f(*jax.tree.unflatten(tree, [cut.get(n, x) for n, x in enumerate(leaves)]))

        return jax.tree.map(join, lax.map(part, cut))

    def split(x, axis):
        # Part p has the elements p, p + parts, …: on a mesh that shards the axis, a part is spread over it.
        return jnp.moveaxis(x.reshape(*x.shape[:axis], -1, parts, *x.shape[axis + 1 :]), axis + 1, 0)

    def join(x):
        x = jnp.moveaxis(x, 0, out_axis + 1)
        return x.reshape(*x.shape[:out_axis], -1, *x.shape[out_axis + 2 :])

    return whole
