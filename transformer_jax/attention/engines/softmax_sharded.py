"""Softmax over a pattern with the sequence cut over devices: how the keys that a query sees come to it.

- A window, with gaps or without: from the neighbours (a halo).
- Every step-th of all keys: round the shards, those of each interleaved sequence to its own queries.
- Few keys: all of them to every shard, once. Few means that they, all together, take no more memory than a
  shard's queries, and that every query sees them all: of keys that come after it a query would compute, and
  throw away, as many as it needs.
- Few queries, which see all keys: each shard gives the part of its keys, and the parts merge. Few means that
  they and their results take no more memory than a shard's keys and values.
- Otherwise all keys go round (`softmax_ring`).
- What no `reach` describes, or does not divide over the devices, is computed on whole sequences.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp
from jax import lax

from transformer_jax.attention.engines.interleaved import aligned, interleaved
from transformer_jax.attention.engines.softmax import (
    Computation,
    Inputs,
    as_cotangent,
    attending,
    inputs_of,
)
from transformer_jax.attention.engines.softmax_plan import Plan, band
from transformer_jax.attention.engines.softmax_ring import ring
from transformer_jax.attention.engines.softmax_rows import Streams
from transformer_jax.parallel.mesh import cuts_sequence, on
from transformer_jax.parallel.sequence import AXIS, Shards, gathered, halo, rank

Segments = tuple[jax.Array, jax.Array] | None
"""Of queries (B, T) and of keys (B, S), −1 where padded; None where all are of one."""


def segment_streams(segments: Segments) -> tuple[Streams, Streams]:
    """As a score reads them."""
    return ({}, {}) if segments is None else ({"segment": segments[0]}, {"segment": segments[1]})


def within_segments(s: jax.Array, query: Streams, key: Streams) -> jax.Array:
    """Scores s (t, s), −inf where the key is of another segment."""
    if "segment" not in query:
        return s
    return jnp.where(query["segment"][:, None] == key["segment"][None], s, -jnp.inf)


Way = Literal["near", "rings", "everywhere", "from all", "ring", "whole"]
"""In the order of the list above; `rings` are those of interleaved sequences."""


def attend(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    plan: Plan,
    computation: Computation,
    *,
    query: Streams,
    key: Streams,
    step: int = 1,
) -> tuple[jax.Array, jax.Array]:
    """`softmax.attend`, on the mesh of the program where it has one that cuts the sequence.

    A query sees only keys a multiple of `step` away; `plan`, which then has a reach, is that of one of the
    interleaved sequences. The computation hides keys whose stream `there`, where they have one, is 0.
    """
    x = inputs_of(q, k, v, plan, query, key, None)
    if not cuts_sequence():
        return interleaved(attending(computation, plan), step)(x)
    shards = Shards.of(len(q), q.shape[2], k.shape[2])
    match way(q, k, v, plan, step):
        case "near":
            return on_shards(shards, lambda x: near(computation, plan, step, x), x)
        case "rings":
            return on_shards(shards, lambda x: rings(computation, step, after_none(plan), x), x)
        case "everywhere":
            return on_shards(shards, lambda x: everywhere(computation, x), x, keys=None)
        case "from all":
            return on_shards(shards, lambda x: from_all(computation, x), x, queries=None)
        case "ring":
            halved = in_halves(q, plan)
            return on_shards(shards, lambda x: ring(computation, x, causal=halved), x)
        case "whole":
            return whole(computation, plan, x)


def way(q: jax.Array, k: jax.Array, v: jax.Array, plan: Plan, step: int = 1) -> Way:
    """How keys come to the queries, on a mesh that cuts the sequence."""
    count = Shards.of(len(q)).count
    queries, keys = (y.shape[1] % count == 0 for y in (q, k))
    own = q.shape[1] // count
    if plan.reach is None:
        return "whole"
    before, after = plan.reach
    together = queries and q.shape[1] == k.shape[1]
    if together and before is not None and after is not None and own + step * (before + after) <= k.shape[1]:
        return "near"
    if step > 1:
        return "rings"
    if queries and after is None and (not keys or k.size + v.size <= q.size // count):
        return "everywhere"
    o = q.size // q.shape[-1] * v.shape[-1]
    if keys and after is None and (not queries or q.size + o <= (k.size + v.size) // count):
        return "from all"
    if together or (queries and keys and after is None):
        return "ring"
    return "whole"


def hidden(q: jax.Array, k: jax.Array, v: jax.Array, plan: Plan) -> str:
    """Which of the keys that come to a query are beyond its reach, so that the score must hide them, as a
    clause; empty where none are."""
    match way(q, k, v, plan):
        case "near":
            return ""
        case "everywhere" | "from all" | "ring" if plan.reach == (None, None):
            return ""
        case "ring" if plan.reach == (None, 0):
            return "" if in_halves(q, plan) else "a causal ring wants shards with an even number of tokens"
        case "ring" | "everywhere" | "from all":
            return "its window is wider than a halo may be"
        case _:
            return "its keys do not come from the other shards in order"


def in_halves(q: jax.Array, plan: Plan) -> bool:
    """Does a ring see to it that nothing comes from behind? Else the score does."""
    return after_none(plan) and q.shape[1] // Shards.of(len(q)).count % 2 == 0


def after_none(plan: Plan) -> bool:
    """Does a query see nothing behind it?"""
    return plan.reach is not None and plan.reach[1] == 0


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


def near(computation: Computation, plan: Plan, step: int, x: Inputs) -> tuple[jax.Array, jax.Array]:
    """Keys from as many steps in front of a query as it reaches to as many behind it; beyond the ends there
    are none."""
    assert plan.reach is not None
    before, after = (reach or 0 for reach in plan.reach)
    there = jnp.ones(x.k.shape[1], jnp.int32)
    k, v, key = halo((x.k, x.v, x.key | {"there": there}), step * before, step * after)
    queries, keys = (-(-y.shape[1] // step) for y in (x.q, k))
    own = band(queries, keys, before=before, after=after, place=before)
    return interleaved(attending(computation, own), step)(x._replace(k=k, v=v, key=key))


def rings(computation: Computation, step: int, causal: bool, x: Inputs) -> tuple[jax.Array, jax.Array]:
    """Of each interleaved sequence a ring."""
    attend = lambda x: ring(computation, x, causal=causal)
    return aligned(attend, step, rank() * x.q.shape[1])(x)


def everywhere(computation: Computation, x: Inputs) -> tuple[jax.Array, jax.Array]:
    return attending(computation, band(x.q.shape[1], x.k.shape[1]))(x)


def from_all(computation: Computation, x: Inputs) -> tuple[jax.Array, jax.Array]:
    """The results over the keys of each shard, as one. Every shard has all queries, and what comes back to a
    result that all have is shared among them: its gradient is the sum."""
    plan = band(x.q.shape[1], x.k.shape[1])

    def forward(x):
        o, lse = computation.forward(plan, x)
        top = lax.pmax(lse, AXIS)
        top = jnp.where(jnp.isfinite(top), top, 0)
        weight = jnp.exp(lse - top)
        total = lax.psum(weight, AXIS)
        some = jnp.where(total > 0, total, 1)
        o = lax.psum(weight[..., None] * o, AXIS) / some[..., None]
        return o, jnp.where(total > 0, top + jnp.log(some), -jnp.inf)

    def run_forward(x):
        done = forward(x)
        return done, (x, *done)

    def backward(saved, cotangents):
        found = computation.backward(plan, *saved, *lax.psum(cotangents, AXIS))
        return (as_cotangent(saved[0], found),)

    run = jax.custom_vjp(forward)
    run.defvjp(run_forward, backward)
    return run(x)


def whole(computation: Computation, plan: Plan, x: Inputs) -> tuple[jax.Array, jax.Array]:
    q, k, v, query, key = gathered((x.q, x.k, x.v, x.query, x.key))
    x = x._replace(q=q, k=k, v=v, query=query, key=key)
    with on(None):
        return attending(computation, plan)(x)
