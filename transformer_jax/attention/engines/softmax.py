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
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import jax
import jax.numpy as jnp
from jax import lax

from transformer_jax.attention.engines.in_turn import ALONE, Cut, in_turn, sequential_parts
from transformer_jax.attention.engines.softmax_plan import Blocks, Plan
from transformer_jax.attention.engines.softmax_rows import (
    Inputs,
    Score,
    Streams,
    accurate,
    backward,
    floats,
    forward,
)
from transformer_jax.parallel.mesh import parts_along
from transformer_jax.parallel.rules import RULES


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
    return attending(InParts(score), plan)(inputs_of(q, k, v, plan, query, key, shared))


def inputs_of(q, k, v, plan: Plan, query, key, shared) -> Inputs:
    lists = {n: jnp.asarray(g.lists, jnp.int32) for n, g in enumerate(plan.groups) if isinstance(g, Blocks)}
    return Inputs(q, k, v, dict(query or {}), dict(key or {}), lists, dict(shared or {}))


class Computation(Protocol):
    """How softmax over a plan is computed, and its gradient, where all of x is on one device."""

    def forward(self, plan: Plan, x: Inputs) -> tuple[jax.Array, jax.Array]:
        """o (B, T, N, H) and lse (B, T, N)."""
        ...

    def backward(self, plan: Plan, x: Inputs, o, lse, do, dlse) -> Inputs:
        """The gradients of what is differentiable in x, as arrays of float32 or wider, from those of o and
        lse. These may be of a softmax over more keys than those of x."""
        ...


def attending(computation: Computation, plan: Plan) -> Callable:
    """x → (o, lse), with its gradient."""

    @jax.custom_vjp
    def run(x):
        return computation.forward(plan, x)

    def run_forward(x):
        o, lse = run(x)
        return (o, lse), (x, o, lse)

    def run_backward(saved, cotangents):
        return (as_cotangent(saved[0], computation.backward(plan, *saved, *cotangents)),)

    run.defvjp(run_forward, run_backward)
    return run


@dataclass(frozen=True)
class InParts:
    """The engine's own execution of any score: some sequences and heads after others."""

    score: Score

    def forward(self, plan, x):
        real = accurate(x.v.dtype)
        o = jax.ShapeDtypeStruct((*x.q.shape[:3], x.v.shape[3]), real)
        out = o, jax.ShapeDtypeStruct(o.shape[:3], real)
        heads, batch = input_axes(x)
        axes = ((heads, 1), (2, 2)), ((batch, 0), (0, 0))
        return in_parts(partial(forward, plan, self.score), plan, x, *axes, out)(x, turned(x.k))

    def backward(self, plan, x, o, lse, do, dlse):
        inputs = x, turned(x.k), turned(x.v), o, lse, do, dlse
        streams = floats(x.query), floats(x.key), floats(x.shared)
        wanted = x.q, inputs[1], inputs[2], *streams
        exact = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, accurate(x.dtype)), wanted)
        (heads, batch), (heads_out, batch_out) = input_axes(x), stream_axes(*streams)
        heads = (heads, 1, 1, 2, 2, 2, 2), (2, 1, 1, *heads_out)
        batch = (batch, 0, 0, 0, 0, 0, 0), (0, 0, 0, *batch_out)
        found = in_parts(partial(backward, plan, self.score), plan, x, heads, batch, exact)(*inputs)
        dq, dkT, dvT, dquery, dkey, dshared = found
        return Inputs(dq, jnp.moveaxis(dkT, 3, 1), jnp.moveaxis(dvT, 3, 1), dquery, dkey, {}, dshared)


def as_cotangent(x: Inputs, found: Inputs) -> Inputs:
    """`found` in the dtypes of x; what is not differentiable has the gradient None."""

    def each(x, found):
        return {name: found[name].astype(x[name].dtype) if name in found else None for name in x}

    dq, dk, dv = (d.astype(a.dtype) for d, a in zip(found[:3], x[:3], strict=True))
    query, key, shared = (each(getattr(x, n), getattr(found, n)) for n in ("query", "key", "shared"))
    return Inputs(dq, dk, dv, query, key, dict.fromkeys(x.lists), shared)


def in_parts(f: Callable, plan: Plan, x: Inputs, heads: tuple, batch: tuple, out: Any) -> Callable:
    """`f` in parts; `heads` and `batch` are the axes in what it takes and in what it returns."""
    batch_size, kv_heads = x.k.shape[0], x.k.shape[2]
    widest = max((g.length for g in plan.groups), default=1)
    tile = x.q.shape[2] // kv_heads * plan.block * widest
    over_heads, over_batch = parts_along(RULES.heads), parts_along(RULES.batch)
    here = kv_heads // over_heads if kv_heads % over_heads == 0 else kv_heads
    cuts = (
        Cut(kv_heads, sequential_parts(kv_heads, tile, over_heads), *heads),
        Cut(batch_size, sequential_parts(batch_size, here * tile, over_batch), *batch),
    )
    return in_turn(f, cuts, out)


def turned(x: jax.Array) -> jax.Array:
    """(B, S, K, H) → (B, K, H, S), in memory: without the barrier the products would read x itself."""
    return lax.optimization_barrier(jnp.moveaxis(x, 1, 3))


def input_axes(x: Inputs) -> tuple[tuple, tuple]:
    """Where each of x has its heads, and where its batch."""
    heads, batch = stream_axes(x.query, x.key, x.shared)
    return (
        (2, 2, 2, *heads[:2], where(x.lists, 1, from_rank=4), heads[2]),
        (0, 0, 0, *batch[:2], where(x.lists, 0, from_rank=4), batch[2]),
    )


def stream_axes(query: Streams, key: Streams, shared: Streams) -> tuple[tuple, tuple]:
    return (
        (where(query, 2, from_rank=3), where(key, 2, from_rank=3), where(shared, 0, from_rank=1)),
        (where(query, 0, from_rank=2), where(key, 0, from_rank=2), where(shared, ALONE, from_rank=0)),
    )


def where(streams: Any, axis: int, *, from_rank: int) -> Any:
    return jax.tree.map(lambda x: axis if x.ndim >= from_rank else ALONE, streams)


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
    """Lets an extra logit per head, (N,) or (B, T, N), take part in the softmax, with the value 0."""
    return merge([(o, lse), (jnp.zeros_like(o), jnp.broadcast_to(logits.astype(lse.dtype), lse.shape))])
