"""Softmax attention over m landmarks: keys and values compressed along time.

With the sequence cut over devices each reduces its own tokens, and the sums of all are the landmarks. While
they are few every device has all of them, and tokens ask them where they are.
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec

from transformer_jax.attention.core import repeat_heads
from transformer_jax.attention.engines import softmax_kernel, softmax_sharded
from transformer_jax.attention.engines.softmax import InParts
from transformer_jax.attention.engines.softmax_plan import band
from transformer_jax.attention.engines.softmax_rows import Streams, accurate
from transformer_jax.parallel.sequence import AXIS, Shards, cuts


def compress(x: jax.Array, projection: jax.Array, valid: jax.Array | None = None) -> jax.Array:
    """Σ_s projection[s] x_s: (B, S, K, H) with (S, m), or (B, S, m) for each row its own → (B, m, K, H).
    Padding, where `valid` (B, S) is False, adds nothing: the result is that of the shorter sequence."""
    if not cuts(x):
        # Apart from what reads it: libtpu 0.0.52 aborts on a product merged with products of the landmarks.
        return lax.optimization_barrier(_compressed(x, projection, valid))
    shards = Shards.of(len(x), x.shape[2])
    rows = PartitionSpec(AXIS) if projection.ndim == 2 else PartitionSpec(shards.batch, AXIS)
    tokens = x, valid
    return shards.run(
        lambda tokens, projection: lax.psum(_compressed(tokens[0], projection, tokens[1]), AXIS),
        (tokens, shards.streams(tokens)),
        (projection, rows),
        out=shards.streams(x, time=None),
    )


def _compressed(x: jax.Array, projection: jax.Array, valid: jax.Array | None) -> jax.Array:
    x = x.astype(jnp.promote_types(jnp.float32, x.dtype))
    if valid is not None:
        x = jnp.where(valid[..., None, None], x, 0)
    rows = "sm" if projection.ndim == 2 else "bsm"
    return jnp.einsum(f"bskh,{rows}->bmkh", x, projection.astype(x.dtype))


def even(x: jax.Array, count: int) -> bool:
    """Is x (B, T, …) cut into so many equal segments, none of which lies on two devices?"""
    return x.shape[1] % count == 0 and not (cuts(x) and count % Shards.of(len(x)).count)


def means(x: jax.Array, count: int) -> jax.Array:
    """Of x (B, T, K, H) the means (B, count, K, H) of `even` segments, in float32 or wider: without the
    product of `compress`."""
    return jnp.mean(x.reshape(len(x), count, -1, *x.shape[2:]), axis=2, dtype=accurate(x.dtype))


def attend(q: jax.Array, k: jax.Array, v: jax.Array, seen: jax.Array | None = None) -> jax.Array:
    """softmax(q kᵀ / √H) v over all keys, or those that are `seen` (B, S): tokens that ask landmarks, or
    landmarks that ask tokens.

    Args:
      q, k, v: (B, T, N, H), (B, S, K, H), (B, S, K, M), of one dtype.

    Returns:
      o (B, T, N, M), in float32 or wider; 0, or on a kernel anything finite, where nothing is seen.
    """
    plan, scale = band(q.shape[1], k.shape[1]), q.shape[-1] ** -0.5
    segments = None
    if seen is not None:
        segments = jnp.zeros(q.shape[:2], jnp.int32), jnp.where(seen, 0, -1)
    o = softmax_kernel.attend(
        q, k, v, segments, plan, rule=None, by_distance=True, scale=scale, soft_cap=None
    )
    if o is None:
        query, key = softmax_sharded.segment_streams(segments)
        o, _ = softmax_sharded.attend(q, k, v, plan, InParts(partial(score, scale)), query=query, key=key)
    return o.astype(accurate(v.dtype))


def score(scale: float, qk: jax.Array, query: Streams, key: Streams, shared: Streams) -> jax.Array:
    """`softmax.Score` of keys that are hidden where their segment is another."""
    return softmax_sharded.within_segments(qk * scale, query, key)


def weights(q: jax.Array, keys: jax.Array, seen: jax.Array | None = None) -> jax.Array:
    """softmax(q kᵀ / √H) of landmarks among themselves, in float32 or wider: q (B, m, N, H), keys
    (B, m, K, H) → (B, N, m, m). Of the keys those that are `seen` (B, m) take part."""
    q, keys = (repeat_heads(x, q.shape[2]).astype(accurate(x.dtype)) for x in (q, keys))
    s = jnp.einsum("binh,bjnh->bnij", q, keys) * q.shape[-1] ** -0.5
    s = s if seen is None else jnp.where(seen[:, None, None], s, jnp.finfo(s.dtype).min)
    return jax.nn.softmax(s, axis=-1)


def attend_flops(batch: int, queries: int, keys: int, heads: int, size: int) -> int:
    """Matrix-product FLOPs of `attend`."""
    return 4 * batch * heads * size * band(queries, keys).pairs
