"""A sequence as `step` interleaved ones, for patterns that see only every step-th token."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from transformer_jax.attention.engines.softmax_rows import Inputs, Score
from transformer_jax.attention.engines.softmax_tokens import padded

Attend = Callable[[Inputs], tuple[jax.Array, jax.Array]]
"""Inputs → o and lse. (None of its inputs belong to heads alone.) Keys whose stream `there`, where they have
one, is 0 it hides."""


def apart(x: jax.Array, step: int) -> jax.Array:
    """(B, T, …) → (B·step, ⌈T/step⌉, …): row b·step + r has the tokens r, r + step, … of row b."""
    x = padded(x, 1, -x.shape[1] % step)
    x = jnp.moveaxis(x.reshape(x.shape[0], -1, step, *x.shape[2:]), 2, 1)
    return x.reshape(-1, *x.shape[2:])


def together(x: jax.Array, step: int, length: int) -> jax.Array:
    """The inverse of `apart`, for a sequence of `length` tokens."""
    x = jnp.moveaxis(x.reshape(-1, step, *x.shape[1:]), 1, 2)
    return x.reshape(x.shape[0], -1, *x.shape[3:])[:, :length]


def interleaved(attend: Attend, step: int) -> Attend:
    """`attend`, to each of the `step` sequences by itself. Queries and keys begin in the same."""
    if step == 1:
        return attend

    def run(x):
        length, there = x.q.shape[1], {}
        if x.k.shape[1] % step:
            there = {"there": jnp.ones(x.k.shape[1], jnp.int32)}
        rows = jax.tree.map(lambda y: apart(each_row(y, len(x.q)), step), x._replace(key=there | x.key))
        found = attend(rows)
        return jax.tree.map(lambda y: together(y, step, length), found)

    return run


def aligned(attend: Attend, step: int, start: jax.Array) -> Attend:
    """`interleaved` for the tokens from place `start` of a sequence on, with room in front so that each row
    has tokens of the same one on every device. Rows have an even length."""

    def run(x):
        length, first = x.q.shape[1], start % step
        room = length if length % step == 0 else length + step - 1
        room = -(-room // (2 * step)) * 2 * step

        def moved(y):
            y = each_row(y, len(x.q))
            empty = jnp.zeros((len(y), room, *y.shape[2:]), y.dtype)
            return lax.dynamic_update_slice_in_dim(empty, y, first, axis=1)

        there = {"there": jnp.ones(length, jnp.int32)}
        rows = jax.tree.map(moved, x._replace(key=x.key | there))
        found = interleaved(attend, step)(rows)
        return jax.tree.map(lambda y: lax.dynamic_slice_in_dim(y, first, length, axis=1), found)

    return run


def each_row(x: jax.Array, batch: int) -> jax.Array:
    """A stream (T,) as (B, T)."""
    return x if x.ndim > 1 else jnp.broadcast_to(x, (batch, *x.shape))


def of_those_there(score: Score) -> Score:
    """The score, −inf for keys whose stream `there`, where they have one, is 0."""

    def masked(qk: jax.Array, query: Any, key: Any, shared: Any) -> jax.Array:
        s = score(qk, query, {name: x for name, x in key.items() if name != "there"}, shared)
        return jnp.where(key["there"][None] > 0, s, -jnp.inf) if "there" in key else s

    return masked
