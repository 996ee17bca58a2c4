"""The rows of a plan one after the other, forward and backward: the inside of `softmax.attend`.

Here queries are (B, K, G, T, …) and keys (B, K, …, S); a stream of rank 1 is (T,), of rank 2 (B, T).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from transformer_jax.attention.engines.softmax_plan import Blocks, Plan, Span

Streams = dict[str, jax.Array]
Score = Callable[[Streams, Streams, Streams], jax.Array]
"""(query streams of one head (t, …), key streams (s, …), shared) → logits (t, s), −inf where unseen."""


def accurate(dtype) -> jnp.dtype:
    return jnp.promote_types(jnp.float32, dtype)


@dataclass(frozen=True)
class At:
    """One row: its number, and where its keys begin (a Span) or which blocks they are (Blocks)."""

    row: Any
    group: Span | Blocks
    where: Any


def softmax_rows(plan: Plan, score: Score) -> Callable:
    """(query, key, value, lists, shared) → o (B, K, G, T, H), lse (B, K, G, T)."""

    def logits(query, key, seen, shared):
        s = per_head(score, query, key, shared)
        return s if seen is None else jnp.where(seen, s, -jnp.inf)

    def forward(query, key, value, lists, shared):
        lead, length = heads_of(query), plan.rows * plan.block
        real = accurate(value.dtype)

        def row(done, inputs, at):
            o, lse = done
            query, key, value, seen = read(plan, at, *inputs)
            s = logits(query, key, seen, shared).astype(real)
            top = jnp.max(s, axis=-1, keepdims=True)
            top = jnp.where(jnp.isfinite(top), top, 0)
            p = jnp.exp(s - top)
            total = jnp.sum(p, axis=-1, keepdims=True)
            some = jnp.where(total > 0, total, 1)
            row_o = jnp.einsum("bkgts,bkhs->bkgth", p.astype(value.dtype), value, preferred_element_type=real)
            row_lse = jnp.where(total > 0, top + jnp.log(some), -jnp.inf)[..., 0]
            return write_query(o, row_o / some, at.row, plan), write_query(lse, row_lse, at.row, plan)

        done = (
            jnp.zeros((*lead, length, value.shape[2]), real),
            jnp.full((*lead, length), -jnp.inf, real),
        )
        return each_row(plan, lists, row, done, (query, key, value))

    def backward(saved, cotangents):
        query, key, value, lists, shared, o, lse = saved
        do, dlse = cotangents
        real = o.dtype
        delta = jnp.sum(o * do, axis=-1) - dlse
        safe = jnp.where(jnp.isfinite(lse), lse, 0)  # exp(−inf − 0) = 0 where nothing is seen

        def row(done, inputs, at):
            dq, dk, dv, dshared = done
            query, key, value, do = inputs
            q_row, k_row, v_row, seen = read(plan, at, query, key, value)
            do_row, delta_row, lse_row = (read_query(x, at.row, plan) for x in (do, delta, safe))

            def logits_of(q, k, more):
                return logits({**q_row, **q}, {**k_row, **k}, seen, {**shared, **more}).astype(real)

            s, pull = jax.vjp(logits_of, floats(q_row), floats(k_row), floats(shared))
            p = jnp.exp(s - lse_row[..., None])
            do_row = do_row.astype(value.dtype)
            dp = jnp.einsum("bkgth,bkhs->bkgts", do_row, v_row, preferred_element_type=real)
            dq_row, dk_row, dshared_row = pull(p * (dp - delta_row[..., None]))
            p = p.astype(value.dtype)
            dv_row = jnp.einsum("bkgth,bkgts->bkhs", do_row, p, preferred_element_type=real)
            return (
                {name: write_query(dq[name], new, at.row, plan) for name, new in dq_row.items()},
                {name: add_keys(dk[name], new, at) for name, new in dk_row.items()},
                add_keys(dv, dv_row, at),
                {name: dshared[name] + new.astype(dshared[name].dtype) for name, new in dshared_row.items()},
            )

        wanted = (floats(query), floats(key), value, floats(shared))
        done = jax.tree.map(lambda x: jnp.zeros(x.shape, accurate(x.dtype)), wanted)
        done = each_row(plan, lists, row, done, (query, key, value, do))
        dq, dk, dv, dshared = jax.tree.map(lambda d, x: d.astype(x.dtype), done, wanted)
        # What is not differentiable has the gradient None.
        dq, dk, dshared = (
            {name: d.get(name) for name in x} for d, x in ((dq, query), (dk, key), (dshared, shared))
        )
        return dq, dk, dv, None, dshared

    @jax.custom_vjp
    def rows(query, key, value, lists, shared):
        return forward(query, key, value, lists, shared)

    def rows_forward(query, key, value, lists, shared):
        o, lse = forward(query, key, value, lists, shared)
        return (o, lse), (query, key, value, lists, shared, o, lse)

    rows.defvjp(rows_forward, backward)
    return rows


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


def per_head(score: Score, query: Streams, key: Streams, shared: Streams) -> jax.Array:
    """The score of every head: (B, K, G, t, s). What belongs to several heads is not repeated."""

    def one(query, key, shared):
        return score(query, {name: jnp.moveaxis(x, -1, 0) for name, x in key.items()}, shared)

    def owners(streams, rank):
        return {name: 0 if x.ndim >= rank else None for name, x in streams.items()}

    scalars = {name: 0 if x.ndim else None for name, x in shared.items()}
    nobody = dict.fromkeys(shared)
    one = jax.vmap(one, (owners(query, 3), dict.fromkeys(key), scalars))
    one = jax.vmap(one, (owners(query, 3), owners(key, 3), scalars))
    one = jax.vmap(one, (owners(query, 2), owners(key, 2), nobody))
    return one(query, key, shared)


# Reading and writing the tokens of one row.


def heads_of(query: Streams) -> tuple[int, ...]:
    return next(x.shape[:3] for x in query.values() if x.ndim > 2)


def query_axis(x: jax.Array) -> int:
    return 3 if x.ndim > 2 else x.ndim - 1


def read(plan: Plan, at: At, query: Streams, key: Streams, value: jax.Array) -> tuple:
    """The streams of one row, and which of its keys are there at all (None: all of them)."""
    query = {name: read_query(x, at.row, plan) for name, x in query.items()}
    key = {name: read_keys(x, at) for name, x in key.items()}
    seen = None
    if isinstance(at.group, Blocks):
        offset = lax.broadcasted_iota(jnp.int32, (*at.where.shape, at.group.block), at.where.ndim)
        slots = at.where[..., None] * at.group.block + offset
        seen = (slots >= 0) & (slots < plan.keys)
        seen = seen.reshape(*(at.where.shape[:-1] or (1, 1)), 1, 1, -1)
    return query, key, read_keys(value, at), seen


def read_query(x: jax.Array, row: Any, plan: Plan) -> jax.Array:
    return lax.dynamic_slice_in_dim(x, row * plan.block, plan.block, query_axis(x))


def write_query(x: jax.Array, new: jax.Array, row: Any, plan: Plan) -> jax.Array:
    return lax.dynamic_update_slice_in_dim(x, new.astype(x.dtype), row * plan.block, query_axis(x))


def read_keys(x: jax.Array, at: At) -> jax.Array:
    if isinstance(at.group, Span):
        return lax.dynamic_slice_in_dim(x, at.where, at.group.length, x.ndim - 1)
    cut = x.reshape(*x.shape[:-1], -1, at.group.block)

    def take(cut, blocks):
        return jnp.take(cut, jnp.maximum(blocks, 0), axis=-2, mode="clip")

    taken = over_lists(take, at.where, x.ndim)(cut, at.where)
    return taken.reshape(*taken.shape[:-2], -1)


def add_keys(x: jax.Array, new: jax.Array, at: At) -> jax.Array:
    """Adds to the keys that `read_keys` read."""
    new = new.astype(x.dtype)
    if isinstance(at.group, Span):
        old = lax.dynamic_slice_in_dim(x, at.where, at.group.length, x.ndim - 1)
        return lax.dynamic_update_slice_in_dim(x, old + new, at.where, x.ndim - 1)

    def add(cut, blocks, new):
        # Absent blocks bring zeros, to block 0.
        return cut.at[..., jnp.maximum(blocks, 0), :].add(new)

    cut = x.reshape(*x.shape[:-1], -1, at.group.block)
    new = new.reshape(*new.shape[:-1], -1, at.group.block)
    return over_lists(add, at.where, x.ndim)(cut, at.where, new).reshape(x.shape)


def over_lists(f: Callable, blocks: jax.Array, rank: int) -> Callable:
    """Maps f over the batch and the heads of lists (B, K, C) where the stream has its own too."""
    if blocks.ndim == 1 or rank < 2:
        return f
    return jax.vmap(jax.vmap(f)) if rank > 2 else jax.vmap(f)


# Streams of integers (indices, segments) have no gradient.


def floats(streams: Streams) -> Streams:
    return {name: x for name, x in streams.items() if jnp.issubdtype(x.dtype, jnp.inexact)}
