"""The element-wise linear recurrence h_t = a_t ⊙ h_{t−1} + b_t, in parallel within chunks."""

from __future__ import annotations

import jax
import jax.numpy as jnp


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

    Products of a are formed only going forward and nothing is divided by them, so a = 0 is exact.
    Chunks follow one another and are recomputed in the backward pass: temporaries are linear in T.

    Args:
      a: (B, T, …), or broadcasting to b. b: (B, T, …), real or complex.
      h: (B, …) the state before the first token; zeros where None.
      starts: (B, T) bool, where a new segment begins: it starts from zero.
      valid: (B, T) bool; padding leaves the state as it is.
      chunk: tokens in parallel; no result depends on it.

    Returns:
      (B, T, …) in float32 at least, and (B, …).
    """
    dtype = jnp.promote_types(jnp.float32, jnp.result_type(a, b))
    a, b = jnp.broadcast_to(a, b.shape).astype(dtype), b.astype(dtype)
    if starts is not None:
        a = jnp.where(_like(starts, a), 0, a)
    if valid is not None:
        a, b = jnp.where(_like(valid, a), a, 1), jnp.where(_like(valid, b), b, 0)
    h = jnp.zeros_like(b[:, 0]) if h is None else h.astype(dtype)
    batch, length = b.shape[:2]
    if length == 1:
        h = a[:, 0] * h + b[:, 0]
        return h[:, None], h
    chunk = min(chunk, length)
    chunks = -(-length // chunk)

    def fold(x, filling):
        """(B, T, …) → (chunks, B, chunk, …)."""
        extra = chunks * chunk - length
        x = jnp.pad(x, ((0, 0), (0, extra)) + ((0, 0),) * (x.ndim - 2), constant_values=filling)
        return jnp.moveaxis(x.reshape(batch, chunks, chunk, *x.shape[2:]), 1, 0)

    def body(h, x):
        product, own = jax.lax.associative_scan(compose, x, axis=1)
        hs = own + product * h[:, None]
        return hs[:, -1], hs

    h, hs = jax.lax.scan(jax.checkpoint(body, prevent_cse=False), h, (fold(a, 1), fold(b, 0)))
    return jnp.moveaxis(hs, 0, 1).reshape(batch, -1, *b.shape[2:])[:, :length], h


def compose(first, second):
    """The map h → a h + b of two stretches, one after the other: what a shard passes on."""
    return first[0] * second[0], first[1] * second[0] + second[1]


def _like(mask: jax.Array, x: jax.Array) -> jax.Array:
    return mask.reshape(mask.shape + (1,) * (x.ndim - 2))
