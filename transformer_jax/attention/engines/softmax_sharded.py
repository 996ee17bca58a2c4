"""Softmax over a pattern with the sequence cut over devices: how the keys that a query sees come to it.

- A window, with gaps or without: from the neighbours (a halo).
- Every step-th of all keys: round the shards, those of each interleaved sequence to its own queries.
- Few keys: all of them to every shard, once. Few means that they, all together, take no more memory than a
  shard's queries, and that every query sees them all: of keys that come after it a query would compute, and
  throw away, as many as it needs.
- Few queries, which see all keys: each shard gives the part of its keys, and the parts merge.
- Otherwise all keys go round (`softmax_ring`).
- What no `reach` describes, or does not divide over the devices, is computed on whole sequences.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from jax import lax

from transformer_jax.attention.engines.interleaved import aligned, interleaved, of_those_there
from transformer_jax.attention.engines.softmax import Inputs, attend_in_parts, inputs_of, merge
from transformer_jax.attention.engines.softmax_plan import Plan, band
from transformer_jax.attention.engines.softmax_ring import ring
from transformer_jax.attention.engines.softmax_rows import Score, Streams
from transformer_jax.parallel.mesh import cuts_sequence, on
from transformer_jax.parallel.sequence import AXIS, Shards, gathered, halo, rank


def attend(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    plan: Plan,
    score: Score,
    *,
    query: Streams,
    key: Streams,
    step: int = 1,
) -> tuple[jax.Array, jax.Array]:
    """`softmax.attend`, on the mesh of the program where it has one that cuts the sequence.

    A query sees only keys a multiple of `step` away; `plan`, which then has a reach, is that of one of the
    interleaved sequences.
    """
    x = inputs_of(q, k, v, plan, query, key, None)
    if not cuts_sequence():
        return interleaved(partial(attend_in_parts, plan), score, step)(x)
    shards = Shards.of(len(q), q.shape[2], k.shape[2])
    queries, keys = (y.shape[1] % shards.count == 0 for y in (q, k))
    own, before_after = q.shape[1] // shards.count, plan.reach
    if before_after is None:
        return whole(x, plan, score)
    before, after = before_after
    together = queries and q.shape[1] == k.shape[1]
    if together and before is not None and after is not None and own + step * (before + after) <= k.shape[1]:
        return on_shards(shards, partial(near, score, before, after, step), x)
    if step > 1:
        return on_shards(shards, partial(rings, score, step, after == 0), x)
    if queries and after is None and (not keys or k.size + v.size <= q.size // shards.count):
        return on_shards(shards, partial(everywhere, score), x, keys=None)
    if keys and after is None and not queries:
        return on_shards(shards, partial(from_all, score), x, queries=None)
    if together or (queries and keys and after is None):
        return on_shards(shards, partial(ring, score, causal=after == 0 and own % 2 == 0), x)
    return whole(x, plan, score)


def on_shards(
    shards: Shards, f: Callable, x: Inputs, queries: str | None = AXIS, keys: str | None = AXIS
) -> tuple[jax.Array, jax.Array]:
    """f of each device's part; queries or keys that are not cut are all there."""
    where = Inputs(
        *(shards.streams(x.q, queries), shards.streams(x.k, keys), shards.streams(x.v, keys)),
        *(shards.streams(x.query, queries), shards.streams(x.key, keys), {}, {}),
    )
    o, result = shards.streams((x.q, x.q[..., 0]), queries)
    return shards.run(f, (x, where), out=(o, result))


def near(score: Score, before: int, after: int, step: int, x: Inputs) -> tuple[jax.Array, jax.Array]:
    """Keys from `before` steps in front of a query to `after` behind it; beyond the ends there are none."""
    there = jnp.ones(x.k.shape[1], jnp.int32)
    k, v, key = halo((x.k, x.v, x.key | {"there": there}), step * before, step * after)
    queries, keys = (-(-y.shape[1] // step) for y in (x.q, k))
    plan = band(queries, keys, before=before, after=after, place=before)
    attend = partial(attend_in_parts, plan)
    return interleaved(attend, of_those_there(score), step)(x._replace(k=k, v=v, key=key))


def rings(score: Score, step: int, causal: bool, x: Inputs) -> tuple[jax.Array, jax.Array]:
    """Of each interleaved sequence a ring."""
    attend = lambda score: partial(ring, score, causal=causal)
    return aligned(attend, score, step, rank() * x.q.shape[1])(x)


def everywhere(score: Score, x: Inputs) -> tuple[jax.Array, jax.Array]:
    return attend_in_parts(band(x.q.shape[1], x.k.shape[1]), score)(x)


def from_all(score: Score, x: Inputs) -> tuple[jax.Array, jax.Array]:
    """The results over the keys of each shard, as one."""
    o, lse = lax.all_gather(everywhere(score, x), AXIS)
    return merge(list(zip(o, lse, strict=True)))


def whole(x: Inputs, plan: Plan, score: Score) -> tuple[jax.Array, jax.Array]:
    q, k, v, query, key = gathered((x.q, x.k, x.v, x.query, x.key))
    x = x._replace(q=q, k=k, v=v, query=query, key=key)
    with on(None):
        return attend_in_parts(plan, score)(x)
