"""A sequence in chunks, one after the other, with a state between them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp


def in_chunks(
    body: Callable[[Any, Any], tuple[Any, Any]], streams: Any, state: Any, *, length: int, chunk: int
) -> tuple[Any, Any]:
    """o (B, T, …), or None, and the last state of state, o = body(state, streams of one chunk).

    The backward pass keeps the states between chunks and recomputes what is inside: temporaries are linear
    in T.

    Args:
      streams: a tree of (B, m T, …), with m steps per token, of each leaf its own. Zeros fill the last chunk;
        if they would change the state, `real_tokens` tells the body where they are.
      length: T, in tokens. chunk: tokens at once, at most.
    """
    if length == 1:
        state, o = body(state, streams)
        return o, state
    chunks, n = cut(length, chunk)

    def fold(x):
        """(B, m T, …) → (chunks, B, m n, …)."""
        size = x.shape[1] // length * n
        x = jnp.pad(x, ((0, 0), (0, chunks * size - x.shape[1])) + ((0, 0),) * (x.ndim - 2))
        return jnp.moveaxis(x.reshape(x.shape[0], chunks, size, *x.shape[2:]), 1, 0)

    def unfold(o):
        return jnp.moveaxis(o, 0, 1).reshape(o.shape[1], chunks * n, *o.shape[3:])[:, :length]

    state, o = jax.lax.scan(jax.checkpoint(body, prevent_cse=False), state, jax.tree.map(fold, streams))
    return jax.tree.map(unfold, o), state


def cut(length: int, chunk: int) -> tuple[int, int]:
    """How many chunks of at most `chunk` tokens hold `length`, and of how many: as few added as can be."""
    chunks = -(-length // chunk)
    return chunks, -(-length // chunks)


def real_tokens(valid: jax.Array | None, length: int, chunk: int) -> jax.Array | None:
    """`valid` (B, T) as a stream; without padding (1, T), or None where the chunks hold no other tokens."""
    chunks, n = cut(length, chunk)
    return jnp.ones((1, length), bool) if valid is None and chunks * n > length else valid
