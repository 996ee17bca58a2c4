"""The rows of a plan one after the other, forward and backward: the inside of `softmax.attend`.

In a row queries are (B, K, G, T, …) and keys (B, K, S, …); a stream of rank 1 is (T,), of rank 2 (B, T).

On CPUs a matrix product whose operands lie as (m, c)·(c, n) runs up to three times as fast as one with an
operand transposed. So keys and values come in both forms, as (B, K, S, H) and turned, as (B, K, H, S): the
forward pass reads kT and v, the backward pass kT, k and vT, and it gathers the gradients of both turned.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from transformer_jax.attention.engines.softmax_plan import Blocks, Plan, Span
from transformer_jax.attention.engines.softmax_tokens import (
    At,
    add_keys,
    add_turned,
    grouped,
    present,
    read_keys,
    read_queries,
    read_turned,
    tokens,
    whole_blocks,
    whole_rows,
    write_queries,
)

Streams = dict[str, jax.Array]
Score = Callable[[jax.Array, Streams, Streams, Streams], jax.Array]
"""Of one head: (q kᵀ (t, s), query streams (t, …), key streams (s, …), shared) → logits (t, s), −inf where
unseen."""


def accurate(dtype) -> jnp.dtype:
    return jnp.promote_types(jnp.float32, dtype)


class Inputs(NamedTuple):
    """What `attend` works on: q (B, T, N, H), k, v (B, S, K, H), the streams, the traced lists of
    blocks by group, and what the score shares, (N, …) or scalars."""

    q: jax.Array
    k: jax.Array
    v: jax.Array
    query: Streams
    key: Streams
    lists: dict[int, jax.Array]
    shared: Streams


def floats(streams: Streams) -> Streams:
    """Streams of integers (indices, segments) have no gradient."""
    return {name: x for name, x in streams.items() if jnp.issubdtype(x.dtype, jnp.inexact)}


def forward(plan: Plan, score: Score, x: Inputs, kT: jax.Array) -> tuple[jax.Array, jax.Array]:
    """o (B, T, N, H) and lse (B, T, N)."""
    real, kv_heads = accurate(x.v.dtype), x.k.shape[2]
    shared = grouped(x.shared, kv_heads, 0)

    def row(done, inputs, at):
        q, kT, v, query, key = inputs
        q, query = read_queries((q, query), at, plan, kv_heads)
        v, key = read_keys((v, key), at)
        qk = dot("bkgth,bkhs->bkgts", q, read_turned(kT, at))
        s = logits(score, qk, query, key, present(plan, at), shared).astype(real)
        top = jnp.max(s, axis=-1, keepdims=True)
        top = jnp.where(jnp.isfinite(top), top, 0)
        p = jnp.exp(s - top)
        total = jnp.sum(p, axis=-1, keepdims=True)
        some = jnp.where(total > 0, total, 1)
        o = dot("bkgts,bksh->bkgth", p.astype(v.dtype), v) / some
        lse = jnp.where(total > 0, top + jnp.log(some), -jnp.inf)[..., 0]
        return write_queries(done, (o, lse), at, plan)

    q, query = whole_rows((x.q, x.query), plan)
    v, key, kT = whole_blocks((x.v, x.key), kT, plan)
    o = jnp.zeros((*q.shape[:3], v.shape[-1]), real)
    lse = jnp.full(q.shape[:3], -jnp.inf, real)
    done = each_row(plan, x.lists, row, (o, lse), (q, kT, v, query, key))
    return jax.tree.map(lambda x: x[:, : plan.queries], done)


def backward(plan: Plan, score: Score, x: Inputs, kT, vT, o, lse, do, dlse) -> tuple:
    """The gradients of q, kT, vT and of the streams that have one, from those of o and lse."""
    real, kv_heads = o.dtype, x.k.shape[2]
    shared = grouped(x.shared, kv_heads, 0)
    delta = jnp.sum(o * do, axis=-1) - dlse
    lse = jnp.where(jnp.isfinite(lse), lse, 0)  # exp(−inf − 0) = 0 where nothing is seen

    def row(done, inputs, at):
        dq, dkT, dvT, dquery, dkey, dshared = done
        q, do, kT, k, vT, query, key, delta, lse = inputs
        q, do, query, delta, lse = read_queries((q, do, query, delta, lse), at, plan, kv_heads)
        k, key = read_keys((k, key), at)
        seen = present(plan, at)

        def logits_of(qk, some_query, some_key, some_shared):
            more = {**query, **some_query}, {**key, **some_key}, seen, {**shared, **some_shared}
            return logits(score, qk, *more).astype(real)

        qk = dot("bkgth,bkhs->bkgts", q, read_turned(kT, at))
        s, pull = jax.vjp(logits_of, qk, floats(query), floats(key), floats(shared))
        p = jnp.exp(s - lse[..., None])
        dp = dot("bkgth,bkhs->bkgts", do, read_turned(vT, at))
        dqk, dquery_row, dkey_row, dshared_row = pull(p * (dp - delta[..., None]))
        dqk = dqk.astype(k.dtype)
        dq, dquery = write_queries((dq, dquery), (dot("bkgts,bksh->bkgth", dqk, k), dquery_row), at, plan)
        dkT = add_turned(dkT, dot("bkgth,bkgts->bkhs", q, dqk), at)
        dvT = add_turned(dvT, dot("bkgth,bkgts->bkhs", do, p.astype(do.dtype)), at)
        dkey = {name: add_keys(dkey[name], new, at) for name, new in dkey_row.items()}
        dshared = {name: dshared[name] + new for name, new in dshared_row.items()}
        return dq, dkT, dvT, dquery, dkey, dshared

    q, do, query, delta, lse = whole_rows((x.q, do.astype(x.v.dtype), x.query, delta, lse), plan)
    k, key, (kT, vT) = whole_blocks((x.k, x.key), (kT, vT), plan)
    wanted = (q, kT, vT, floats(query), floats(key), floats(shared))
    done = jax.tree.map(lambda x: jnp.zeros(x.shape, accurate(x.dtype)), wanted)
    done = each_row(plan, x.lists, row, done, (q, do, kT, k, vT, query, key, delta, lse))
    dq, dkT, dvT, dquery, dkey, dshared = done
    dq, dquery = jax.tree.map(lambda x: tokens(x, plan.queries), (dq, dquery))
    dkey = jax.tree.map(lambda x: tokens(x, plan.keys), dkey)
    dshared = jax.tree.map(lambda d, x: d.reshape(x.shape), dshared, floats(x.shared))
    return dq, dkT[..., : plan.keys], dvT[..., : plan.keys], dquery, dkey, dshared


def logits(score: Score, qk: jax.Array, query: Streams, key: Streams, seen, shared: Streams) -> jax.Array:
    s = per_head(score, qk, query, key, shared)
    return s if seen is None else jnp.where(seen, s, -jnp.inf)


def dot(equation: str, a: jax.Array, b: jax.Array) -> jax.Array:
    return jnp.einsum(equation, a, b, preferred_element_type=accurate(a.dtype))


def each_row(plan: Plan, lists: dict[int, jax.Array], row: Callable, done: Any, inputs: Any) -> Any:
    """Folds `row(done, inputs, at)` over all rows of the plan."""
    for number, group in enumerate(plan.groups):
        if isinstance(group, Span):
            where = jnp.asarray(group.starts, jnp.int32)
        else:
            where = jnp.moveaxis(lists[number], -2, 0)
        if len(group.rows) == 1:
            # Without the barrier the compiler may hold the scores of several rows at once.
            done, inputs = lax.optimization_barrier((done, inputs))
            start = int(group.starts[0]) if isinstance(group, Span) else where[0]
            done = row(done, inputs, At(int(group.rows[0]), group, start))
        else:
            rows = jnp.asarray(group.rows, jnp.int32)
            done = scan_rows(row, done, inputs, group, rows, where)
    return done


def scan_rows(row: Callable, done: Any, inputs: Any, group: Span | Blocks, rows: jax.Array, where: jax.Array):
    def step(done, at):
        return row(done, inputs, At(at[0], group, at[1])), None

    return lax.scan(step, done, (rows, where))[0]


def per_head(score: Score, qk: jax.Array, query: Streams, key: Streams, shared: Streams) -> jax.Array:
    """The score of every head: (B, K, G, t, s). What belongs to several heads is not repeated."""

    def owners(streams, rank):
        return {name: 0 if x.ndim >= rank else None for name, x in streams.items()}

    scalars = {name: 0 if x.ndim else None for name, x in shared.items()}
    nobody = dict.fromkeys
    one = jax.vmap(score, (0, owners(query, 3), nobody(key), scalars))
    one = jax.vmap(one, (0, owners(query, 3), owners(key, 3), scalars))
    one = jax.vmap(one, (0, owners(query, 2), owners(key, 2), nobody(shared)))
    return one(qk, query, key, shared)
