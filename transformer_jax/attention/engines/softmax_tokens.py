"""The tokens of one row of a plan: read where they lie, brought to the row's layout, written back.

Tokens lie on axis 1 of a stream, or alone; turned, as (B, K, H, S), behind the rest. Heads of queries are
N = K·G until a row is read; in a row heads lie before tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from transformer_jax.attention.engines.softmax_plan import Blocks, Plan, Span


@dataclass(frozen=True)
class At:
    """One row: its number, and where its keys begin (a Span) or which blocks they are (Blocks)."""

    row: Any
    group: Span | Blocks
    where: Any


def grouped(tree: Any, kv_heads: int, axis: int) -> Any:
    """N heads on `axis` become K, G; what has no heads stays."""

    def group(x):
        return x.reshape(*x.shape[:axis], kv_heads, -1, *x.shape[axis + 1 :]) if x.ndim > axis else x

    return jax.tree.map(group, tree)


def tokens_axis(x: jax.Array) -> int:
    return min(x.ndim - 1, 1)


def tokens(x: jax.Array, count: int) -> jax.Array:
    return lax.slice_in_dim(x, 0, count, axis=tokens_axis(x))


def padded(x: jax.Array, axis: int, missing: int) -> jax.Array:
    return jnp.pad(x, [(0, missing if n == axis else 0) for n in range(x.ndim)]) if missing else x


def whole_rows(queries: Any, plan: Plan) -> Any:
    missing = plan.rows * plan.block - plan.queries
    return jax.tree.map(lambda x: padded(x, tokens_axis(x), missing), queries)


def whole_blocks(keys: Any, turned: Any, plan: Plan) -> Any:
    missing = plan.missing_keys
    keys = jax.tree.map(lambda x: padded(x, tokens_axis(x), missing), keys)
    return *keys, jax.tree.map(lambda x: padded(x, 3, missing), turned)


def read_queries(tree: Any, at: At, plan: Plan, kv_heads: int) -> Any:
    def read(x):
        x = lax.dynamic_slice_in_dim(x, at.row * plan.block, plan.block, tokens_axis(x))
        return jnp.moveaxis(grouped(x, kv_heads, 2), 1, 3) if x.ndim > 2 else x

    return jax.tree.map(read, tree)


def write_queries(tree: Any, new: Any, at: At, plan: Plan) -> Any:
    def write(x, new):
        if x.ndim > 2:
            new = jnp.moveaxis(new, 3, 1).reshape(x.shape[0], plan.block, *x.shape[2:])
        return lax.dynamic_update_slice_in_dim(x, new.astype(x.dtype), at.row * plan.block, tokens_axis(x))

    return jax.tree.map(write, tree, new)


def read_keys(tree: Any, at: At) -> Any:
    return jax.tree.map(lambda x: read(x, at, tokens_axis(x), 2), tree)


def add_keys(x: jax.Array, new: jax.Array, at: At) -> jax.Array:
    return add(x, new, at, tokens_axis(x), 2)


def read_turned(x: jax.Array, at: At) -> jax.Array:
    return read(x, at, 3, 1)


def add_turned(x: jax.Array, new: jax.Array, at: At) -> jax.Array:
    return add(x, new, at, 3, 1)


def read(x: jax.Array, at: At, axis: int, heads: int) -> jax.Array:
    """The keys of the row, heads first; in x tokens lie along `axis` and heads along `heads`, if any.

    With a list for every sequence and head, what had none of its own has one for each.
    """
    if isinstance(at.group, Span):
        return heads_first(lax.dynamic_slice_in_dim(x, at.where, at.group.length, axis), heads)
    blocks = jnp.maximum(at.where, 0)
    if blocks.ndim == 1:
        taken = jnp.take(in_blocks(x, at.group.block, axis), blocks, axis=axis, mode="clip")
        return heads_first(taken.reshape(*x.shape[:axis], -1, *x.shape[axis + 1 :]), heads)
    x, axis = heads_first(x, heads), axis + (heads > axis and x.ndim > 2)
    owned = min(x.ndim - 1, 2)
    take = over(lambda cut, blocks: jnp.take(cut, blocks, axis=axis - owned, mode="clip"), owned)
    taken = take(in_blocks(x, at.group.block, axis), blocks)
    last = x.shape[axis + 1 :]
    return taken.reshape(*taken.shape[: taken.ndim - 2 - len(last)], -1, *last)


def add(x: jax.Array, new: jax.Array, at: At, axis: int, heads: int) -> jax.Array:
    """Adds to the keys that were read; absent blocks bring zeros, to block 0."""
    new = new.astype(x.dtype)
    if isinstance(at.group, Span):
        old = lax.dynamic_slice_in_dim(x, at.where, at.group.length, axis)
        return lax.dynamic_update_slice_in_dim(x, old + heads_back(new, heads), at.where, axis)
    size, blocks = at.group.block, jnp.maximum(at.where, 0)
    if blocks.ndim == 1:
        new = in_blocks(heads_back(new, heads), size, axis)
        return in_blocks(x, size, axis).at[(*[slice(None)] * axis, blocks)].add(new).reshape(x.shape)
    first, axis = heads_first(x, heads), axis + (heads > axis and x.ndim > 2)
    owned = min(x.ndim - 1, 2)
    put = over(lambda cut, blocks, new: cut.at[(*[slice(None)] * (axis - owned), blocks)].add(new), owned)
    new = in_blocks(new, size, new.ndim - (x.ndim - axis))
    return heads_back(put(in_blocks(first, size, axis), blocks, new).reshape(first.shape), heads)


def heads_first(x: jax.Array, heads: int) -> jax.Array:
    return jnp.moveaxis(x, heads, 1) if x.ndim > 2 else x


def heads_back(x: jax.Array, heads: int) -> jax.Array:
    return jnp.moveaxis(x, 1, heads) if x.ndim > 2 else x


def over(f: Callable, axes: int) -> Callable:
    """f for each of the batch, and of the heads."""
    return f if axes == 0 else over(jax.vmap(f), axes - 1)


def in_blocks(x: jax.Array, block: int, axis: int) -> jax.Array:
    return x.reshape(*x.shape[:axis], -1, block, *x.shape[axis + 1 :])


def present(plan: Plan, at: At) -> jax.Array | None:
    """Which keys of the row are there at all; None: all of them."""
    if isinstance(at.group, Span):
        return None
    offset = lax.broadcasted_iota(jnp.int32, (*at.where.shape, at.group.block), at.where.ndim)
    slots = at.where[..., None] * at.group.block + offset
    seen = (slots >= 0) & (slots < plan.keys)
    return seen.reshape(*(at.where.shape[:-1] or (1, 1)), 1, 1, -1)
