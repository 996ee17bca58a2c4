"""The element-wise linear recurrence h_t = a_t ⊙ h_{t−1} + b_t, in parallel within chunks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from transformer_jax.attention.engines.chunks import in_chunks, real_tokens


def scan(
    a: jax.Array,
    b: jax.Array,
    h: jax.Array | None = None,
    *,
    starts: jax.Array | None = None,
    valid: jax.Array | None = None,
    chunk: int = 128,
) -> tuple[jax.Array, jax.Array]:
    """h_1 … h_T, and h after the last valid token.

    Args:
      a: (B, T, …), or broadcasting to b. b: (B, T, …), real or complex.
      h: (B, …) the state before the first token; zeros where None.
      starts, valid, chunk: as in `expanded_scan`.

    Returns:
      (B, T, …) in float32 at least, and (B, …).
    """
    dtype = jnp.promote_types(jnp.float32, jnp.result_type(a, b))
    a, b = jnp.broadcast_to(a, b.shape).astype(dtype), b.astype(dtype)
    h = jnp.zeros_like(b[:, 0]) if h is None else h.astype(dtype)
    return expanded_scan(lambda ab: ab, lambda h, _: h, (a, b), h, starts=starts, valid=valid, chunk=chunk)


def expanded_scan(
    expand: Callable[[Any], tuple[jax.Array, jax.Array]],
    read: Callable[[jax.Array, Any], jax.Array],
    streams: Any,
    h: jax.Array,
    *,
    starts: jax.Array | None = None,
    valid: jax.Array | None = None,
    chunk: int = 128,
) -> tuple[jax.Array, jax.Array]:
    """o_t = read(h_t, streams_t) where (a_t, b_t) = expand(streams_t), and h after the last valid token.

    What is larger than the streams, as a state of several numbers per channel, exists for one chunk at a
    time. Products of a are formed only going forward and nothing is divided by them, so a = 0 is exact.
    Chunks follow one another and are recomputed in the backward pass: temporaries are linear in T.

    Args:
      expand: streams of some tokens → a and b (B, t, …) of the shape and dtype of h, token by token.
      read: h (B, t, …) and streams of some tokens → (B, t, …), token by token.
      streams: a tree of (B, T, …).
      h: (B, …) the state before the first token.
      starts: (B, T) bool, where a new segment begins: it starts from zero.
      valid: (B, T) bool; padding leaves the state as it is.
      chunk: tokens in parallel; no result depends on it.

    Returns:
      (B, T, …), and (B, …).
    """

    def body(h, x):
        product, own = jax.lax.associative_scan(compose, _masked(expand, *x), axis=1)
        hs = own + product * h[:, None]
        return hs[:, -1], read(hs, x[0])

    length = jax.tree.leaves(streams)[0].shape[1]
    streams = (streams, starts, real_tokens(valid, length, chunk))
    return in_chunks(body, streams, h, length=length, chunk=chunk)


def summary(expand: Callable, streams: Any, h: jax.Array, starts, valid, chunk: int) -> tuple:
    """(a, b) of the map h → a h + b from before all tokens to after them; of h the shape is read."""

    def body(done, x):
        own = jax.lax.associative_scan(compose, _masked(expand, *x), axis=1)
        return compose(done, tuple(part[:, -1] for part in own)), None

    length = jax.tree.leaves(streams)[0].shape[1]
    streams = (streams, starts, real_tokens(valid, length, chunk))
    nothing = jnp.ones_like(h), jnp.zeros_like(h)
    return in_chunks(body, streams, nothing, length=length, chunk=chunk)[1]


def _masked(expand: Callable, streams: Any, starts, valid) -> tuple[jax.Array, jax.Array]:
    """a and b of some tokens, where a segment begins and padding lies."""
    a, b = expand(streams)
    if starts is not None:
        a = jnp.where(like(starts, a), 0, a)
    if valid is not None:
        a, b = jnp.where(like(valid, a), a, 1), jnp.where(like(valid, b), b, 0)
    return a, b


def compose(first, second):
    """The map h → a h + b of two stretches, one after the other: what a shard passes on."""
    return first[0] * second[0], first[1] * second[0] + second[1]


def like(mask: jax.Array, x: jax.Array) -> jax.Array:
    """The mask with axes of 1 for those that x has more."""
    return mask.reshape(mask.shape + (1,) * (x.ndim - mask.ndim))
