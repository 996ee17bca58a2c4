"""The rows of a plan one after the other, forward and backward: the inside of `softmax.attend`.

Here queries are (B, K, G, T, …) and keys (B, K, S, …); a stream of rank 1 is (T,), of rank 2 (B, T).

On CPUs a matrix product whose operands lie as (m, c)·(c, n) runs up to three times as fast as one with an
operand transposed. So keys and values come in both forms, as (B, K, S, H) and turned, as (B, K, H, S): the
forward pass reads kT and v, the backward pass kT, k and vT, and it gathers the gradients of both turned.
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
Score = Callable[[jax.Array, Streams, Streams, Streams], jax.Array]
"""Of one head: (q kᵀ (t, s), query streams (t, …), key streams (s, …), shared) → logits (t, s), −inf where
unseen."""


def accurate(dtype) -> jnp.dtype:
    return jnp.promote_types(jnp.float32, dtype)


@dataclass(frozen=True)
class At:
    """One row: its number, and where its keys begin (a Span) or which blocks they are (Blocks)."""

    row: Any
    group: Span | Blocks
    where: Any


def softmax_rows(plan: Plan, score: Score) -> Callable:
    """(q, kT, v, again, query, key, lists, shared) → o (B, K, G, T, H), lse (B, K, G, T).

    `again` is (k, vT), the same values in the other form; it has no gradient.
    """

    def logits(qk, query, key, seen, shared):
        s = per_head(score, qk, query, key, shared)
        return s if seen is None else jnp.where(seen, s, -jnp.inf)

    def forward(q, kT, v, again, query, key, lists, shared):
        lead, length = q.shape[:3], plan.rows * plan.block
        real = accurate(v.dtype)

        def row(done, inputs, at):
            o, lse = done
            q, kT, v, query, key = inputs
            q, query = read_queries((q, query), at, plan)
            v, key = read_keys((v, key), at)
            qk = dot("bkgth,bkhs->bkgts", q, read_turned(kT, at))
            s = logits(qk, query, key, present(plan, at), shared).astype(real)
            top = jnp.max(s, axis=-1, keepdims=True)
            top = jnp.where(jnp.isfinite(top), top, 0)
            p = jnp.exp(s - top)
            total = jnp.sum(p, axis=-1, keepdims=True)
            some = jnp.where(total > 0, total, 1)
            row_o = dot("bkgts,bksh->bkgth", p.astype(v.dtype), v) / some
            row_lse = jnp.where(total > 0, top + jnp.log(some), -jnp.inf)[..., 0]
            return write_queries((o, lse), (row_o, row_lse), at, plan)

        done = (jnp.zeros((*lead, length, v.shape[-1]), real), jnp.full((*lead, length), -jnp.inf, real))
        return each_row(plan, lists, row, done, (q, kT, v, query, key))

    def backward(saved, cotangents):
        q, kT, v, (k, vT), query, key, lists, shared, o, lse = saved
        do, dlse = cotangents
        real = o.dtype
        delta = jnp.sum(o * do, axis=-1) - dlse
        safe = jnp.where(jnp.isfinite(lse), lse, 0)  # exp(−inf − 0) = 0 where nothing is seen

        def row(done, inputs, at):
            dq, dkT, dvT, dquery, dkey, dshared = done
            q, do, kT, k, vT, query, key = inputs
            q, do, query, delta_row, lse_row = read_queries((q, do, query, delta, safe), at, plan)
            k, key = read_keys((k, key), at)
            seen = present(plan, at)
            do = do.astype(v.dtype)

            def logits_of(qk, some_query, some_key, some_shared):
                some_shared = {**shared, **some_shared}
                return logits(qk, {**query, **some_query}, {**key, **some_key}, seen, some_shared).astype(
                    real
                )

            qk = dot("bkgth,bkhs->bkgts", q, read_turned(kT, at))
            s, pull = jax.vjp(logits_of, qk, floats(query), floats(key), floats(shared))
            p = jnp.exp(s - lse_row[..., None])
            dp = dot("bkgth,bkhs->bkgts", do, read_turned(vT, at))
            dqk, dquery_row, dkey_row, dshared_row = pull(p * (dp - delta_row[..., None]))
            dqk = dqk.astype(k.dtype)
            dq, dquery = write_queries((dq, dquery), (dot("bkgts,bksh->bkgth", dqk, k), dquery_row), at, plan)
            dkT = add_keys(dkT, dot("bkgth,bkgts->bkhs", q, dqk), at, axis=3)
            dvT = add_keys(dvT, dot("bkgth,bkgts->bkhs", do, p.astype(v.dtype)), at, axis=3)
            dkey = {name: add_keys(dkey[name], new, at) for name, new in dkey_row.items()}
            dshared = {name: dshared[name] + new for name, new in dshared_row.items()}
            return dq, dkT, dvT, dquery, dkey, dshared

        wanted = (q, kT, vT, floats(query), floats(key), floats(shared))
        done = jax.tree.map(lambda x: jnp.zeros(x.shape, accurate(x.dtype)), wanted)
        done = each_row(plan, lists, row, done, (q, do, kT, k, vT, query, key))
        done = jax.tree.map(lambda d, x: d.astype(x.dtype), done, wanted)
        dq, dkT, dvT, dquery, dkey, dshared = done
        # What is not differentiable has the gradient None.
        dquery, dkey, dshared = (
            {name: d.get(name) for name in x} for d, x in ((dquery, query), (dkey, key), (dshared, shared))
        )
        return dq, dkT, jnp.swapaxes(dvT, 2, 3), None, dquery, dkey, None, dshared

    @jax.custom_vjp
    def rows(*inputs):
        return forward(*inputs)

    def rows_forward(*inputs):
        o, lse = forward(*inputs)
        return (o, lse), (*inputs, o, lse)

    rows.defvjp(rows_forward, backward)
    return rows


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


# Reading and writing the tokens of one row.


def query_axis(x: jax.Array) -> int:
    return 3 if x.ndim > 2 else x.ndim - 1


def read_queries(tree: Any, at: At, plan: Plan) -> Any:
    start = at.row * plan.block
    return jax.tree.map(lambda x: lax.dynamic_slice_in_dim(x, start, plan.block, query_axis(x)), tree)


def write_queries(tree: Any, new: Any, at: At, plan: Plan) -> Any:
    def write(x, new):
        return lax.dynamic_update_slice_in_dim(x, new.astype(x.dtype), at.row * plan.block, query_axis(x))

    return jax.tree.map(write, tree, new)


def read_keys(tree: Any, at: At) -> Any:
    return jax.tree.map(lambda x: read(x, at, min(x.ndim - 1, 2)), tree)


def read_turned(x: jax.Array, at: At) -> jax.Array:
    return read(x, at, 3)


def read(x: jax.Array, at: At, axis: int) -> jax.Array:
    """The keys of the row, which lie along `axis`."""
    if isinstance(at.group, Span):
        return lax.dynamic_slice_in_dim(x, at.where, at.group.length, axis)

    def take(cut, blocks):
        return jnp.take(cut, jnp.maximum(blocks, 0), axis=axis - x.ndim - 1, mode="clip")

    taken = over_lists(take, at.where, x.ndim)(in_blocks(x, at.group.block, axis), at.where)
    return taken.reshape(*x.shape[:axis], -1, *x.shape[axis + 1 :])


def add_keys(x: jax.Array, new: jax.Array, at: At, axis: int | None = None) -> jax.Array:
    """Adds to the keys that were read."""
    axis = min(x.ndim - 1, 2) if axis is None else axis
    new = new.astype(x.dtype)
    if isinstance(at.group, Span):
        old = lax.dynamic_slice_in_dim(x, at.where, at.group.length, axis)
        return lax.dynamic_update_slice_in_dim(x, old + new, at.where, axis)

    def add(cut, blocks, new):
        # Absent blocks bring zeros, to block 0.
        there = (..., jnp.maximum(blocks, 0), *[slice(None)] * (x.ndim - axis))
        return cut.at[there].add(new)

    cut, new = in_blocks(x, at.group.block, axis), in_blocks(new, at.group.block, axis)
    return over_lists(add, at.where, x.ndim)(cut, at.where, new).reshape(x.shape)


def in_blocks(x: jax.Array, block: int, axis: int) -> jax.Array:
    return x.reshape(*x.shape[:axis], -1, block, *x.shape[axis + 1 :])


def over_lists(f: Callable, blocks: jax.Array, rank: int) -> Callable:
    """Maps f over the batch and the heads of lists (B, K, C) where the stream has its own too."""
    if blocks.ndim == 1 or rank < 2:
        return f
    return jax.vmap(jax.vmap(f)) if rank > 2 else jax.vmap(f)


def present(plan: Plan, at: At) -> jax.Array | None:
    """Which keys of the row are there at all; None: all of them."""
    if isinstance(at.group, Span):
        return None
    offset = lax.broadcasted_iota(jnp.int32, (*at.where.shape, at.group.block), at.where.ndim)
    slots = at.where[..., None] * at.group.block + offset
    seen = (slots >= 0) & (slots < plan.keys)
    return seen.reshape(*(at.where.shape[:-1] or (1, 1)), 1, 1, -1)


# Streams of integers (indices, segments) have no gradient.


def floats(streams: Streams) -> Streams:
    return {name: x for name, x in streams.items() if jnp.issubdtype(x.dtype, jnp.inexact)}
