"""Softmax attention over m landmarks: keys and values compressed along time."""

from __future__ import annotations

import jax
import jax.numpy as jnp


def compress(x: jax.Array, projection: jax.Array, valid: jax.Array | None = None) -> jax.Array:
    """Σ_s projection[s] x_s: (B, S, K, H) with (S, m), or (B, S, m) for each row its own → (B, m, K, H).
    Padding, where `valid` (B, S) is False, adds nothing: the result is that of the shorter sequence."""
    x = x.astype(jnp.promote_types(jnp.float32, x.dtype))
    if valid is not None:
        x = jnp.where(valid[..., None, None], x, 0)
    rows = "sm" if projection.ndim == 2 else "bsm"
    return jnp.einsum(f"bskh,{rows}->bmkh", x, projection.astype(x.dtype))


def attend(q: jax.Array, keys: jax.Array, values: jax.Array, seen: jax.Array | None = None) -> jax.Array:
    """softmax(q kᵀ / √H) v over landmarks: q (B, T, N, H), keys and values (B, m, K, H) → (B, T, N, H).

    Memory is T·m: nothing has T² elements. `seen`: as in `weights`, of which these are the means.
    """
    o = jnp.einsum("bkgtm,bmkh->btkgh", weights(q, keys, seen), values)
    return o.reshape(*q.shape[:3], values.shape[-1])


def weights(q: jax.Array, keys: jax.Array, seen: jax.Array | None = None) -> jax.Array:
    """softmax(q kᵀ / √H): q (B, T, N, H), keys (B, m, K, H) → (B, K, N / K, T, m).

    Query head n reads key-value head n // (N / K). Either may be the landmarks, the other the tokens. Of the
    keys those that are `seen` (B, m) take part; where none is, the weights are any that are finite.
    """
    batch, length, heads, size = q.shape
    grouped = q.astype(keys.dtype).reshape(batch, length, keys.shape[2], -1, size)
    scores = jnp.einsum("btkgh,bmkh->bkgtm", grouped, keys) * size**-0.5
    if seen is not None:
        scores = jnp.where(seen[:, None, None, None], scores, jnp.finfo(scores.dtype).min)
    return jax.nn.softmax(scores, axis=-1)


def flops(batch: int, queries: int, keys: int, landmarks: int, heads: int, kv_heads: int, size: int) -> int:
    """Matrix-product FLOPs of compressing keys and values, and of attending to them."""
    return 4 * batch * landmarks * size * (keys * kv_heads + queries * heads)
