"""Softmax in which every query has key blocks of its own, chosen by content.

Queries that chose the same block are brought together, so that a product is one of many queries with one
block: T·C·block work for C blocks per query, padded by at most one row of queries per block, and T·C·H
memory. The C results of a query merge by log-sum-exp.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from transformer_jax.attention.core import repeat_heads
from transformer_jax.attention.engines.softmax import attend, merge
from transformer_jax.attention.engines.softmax_plan import Blocks, Plan, row_size
from transformer_jax.attention.engines.softmax_rows import Score, Streams


def attend_chosen(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    chosen: jax.Array,
    block: int,
    score: Score,
    *,
    query: Streams | None = None,
    key: Streams | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Attention of T queries to the blocks of `block` keys that each of them has chosen.

    Args:
      chosen: (B, T, K, C) int32, the same for the query heads of a key-value head; −1 where absent. No
        block may stand twice in a choice.
      q, k, v, score, query, key: as of `softmax.attend`.

    Returns:
      o (B, T, N, H) and lse (B, T, N).
    """
    length, heads, choices = q.shape[1], q.shape[2], chosen.shape[3]
    rows = rows_of(length, choices, k.shape[1], block)
    each = jax.vmap(jax.vmap(lambda c: together(c, rows, -(-k.shape[1] // block), block), 1, 1))
    source, lists, slot = each(chosen)  # (B, rows·block, K), (B, rows, K), (B, T, K, C)
    plan = Plan(
        queries=rows * block,
        keys=k.shape[1],
        block=block,
        groups=[Blocks(rows=np.arange(rows), lists=jnp.moveaxis(lists, 2, 1)[..., None], block=block)],
    )

    def bring(x):  # (T,), (B, T) or (B, T, N, …) → of the same rank from 3 on, with N heads
        if x.ndim < 3:
            x = jnp.broadcast_to(x, q.shape[:2])[..., None]
            return repeat_heads(jnp.take_along_axis(x, source, axis=1), heads)
        return take(x, source)

    query = {name: bring(x) for name, x in (query or {}).items()}
    o, lse = attend(take(q, source), k, v, plan, score, query=query, key=key)
    parts = []
    for n in range(choices):
        at = slot[..., n]
        absent = repeat_heads(at < 0, heads)
        parts.append((take(o, at), jnp.where(absent, -jnp.inf, take(lse, at))))
    return merge(parts)


def take(x: jax.Array, at: jax.Array) -> jax.Array:
    """x (B, T, N, …) at the tokens `at` (B, T', K) → (B, T', N, …)."""
    by_head = x.reshape(*x.shape[:2], at.shape[2], -1)
    found = jnp.take_along_axis(by_head, jnp.maximum(at, 0)[..., None], axis=1)
    return found.reshape(x.shape[0], at.shape[1], *x.shape[2:])


def rows_of(queries: int, choices: int, keys: int, block: int) -> int:
    """Rows of `block` queries that suffice however they choose: of every block the last may be short."""
    return queries * choices // block + min(-(-keys // block), queries * choices)


def together(chosen: jax.Array, rows: int, blocks: int, size: int) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Sorts the choices (T, C) of one head by block, each block's beginning in a new row of `size` queries.

    Returns which query stands in each of rows·size slots (anything where none does), the block of each row
    (−1: none), and the slot of each choice, (T, C), −1 where absent.
    """
    wanted = jnp.where(chosen < 0, blocks, chosen).reshape(-1)
    order = jnp.argsort(wanted, stable=True).astype(jnp.int32)
    ranked = wanted[order]
    first = jnp.searchsorted(ranked, jnp.arange(blocks + 1))
    last_row = jnp.cumsum(-(-jnp.diff(first) // size))
    first_row = jnp.concatenate([jnp.zeros(1, last_row.dtype), last_row])
    slot = first_row[ranked] * size + jnp.arange(ranked.size) - first[ranked]
    slot = jnp.where(ranked < blocks, slot, -1).astype(jnp.int32)
    beyond = jnp.where(slot < 0, rows * size, slot)
    source = jnp.zeros(rows * size, jnp.int32).at[beyond].set(order // chosen.shape[1], mode="drop")
    block = jnp.searchsorted(last_row, jnp.arange(rows), side="right")
    block = jnp.where(block < blocks, block, -1).astype(jnp.int32)
    return source, block, jnp.zeros_like(slot).at[order].set(slot).reshape(chosen.shape)


def by_chunks(f: Callable, length: int, *streams: jax.Array) -> jax.Array:
    """f of a row of queries after another, streams (B, T, …) → (B, T, …), for what is too large to be held of
    all of them, as the scores that they choose by. The backward pass computes it again."""
    size = row_size(length)

    def chunks(x):
        x = jnp.pad(x, [(0, -length % size if axis == 1 else 0) for axis in range(x.ndim)])
        return jnp.moveaxis(x.reshape(x.shape[0], -1, size, *x.shape[2:]), 1, 0)

    found = jnp.moveaxis(lax.map(jax.checkpoint(lambda x: f(*x)), tuple(map(chunks, streams))), 0, 1)
    return found.reshape(found.shape[0], padded_length(length), *found.shape[3:])[:, :length]


def padded_length(length: int) -> int:
    """How many queries `by_chunks` computes for."""
    size = row_size(length)
    return -(-length // size) * size


def best(scores: jax.Array, count: int) -> jax.Array:
    """The places of the `count` largest scores along the last axis, −1 in place of those that are −inf."""
    top, place = lax.top_k(scores, min(count, scores.shape[-1]))
    return jnp.where(jnp.isneginf(top), -1, place).astype(jnp.int32)
