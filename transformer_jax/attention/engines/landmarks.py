"""Softmax attention over m landmarks: keys and values compressed along time.

With the sequence cut over devices each reduces its own tokens, and the sums of all are the landmarks, which
every device has; tokens then ask them where they are.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec

from transformer_jax.parallel.sequence import AXIS, Shards, cuts


def compress(x: jax.Array, projection: jax.Array, valid: jax.Array | None = None) -> jax.Array:
    """Σ_s projection[s] x_s: (B, S, K, H) with (S, m), or (B, S, m) for each row its own → (B, m, K, H).
    Padding, where `valid` (B, S) is False, adds nothing: the result is that of the shorter sequence."""
    if not cuts(x):
        return _compressed(x, projection, valid)
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


def read(q: jax.Array, keys: jax.Array, values: jax.Array, valid: jax.Array | None = None) -> jax.Array:
    """`attend` with landmarks that ask the tokens: q (B, m, N, H), keys and values (B, S, K, H)."""
    if not cuts(keys):
        return attend(q, keys, values, valid)
    shards = Shards.of(len(q), q.shape[2], keys.shape[2])
    tokens = keys, values, valid
    where = shards.streams(q, time=None)
    return shards.run(_read_on_shard, (q, where), (tokens, shards.streams(tokens)), out=where)


def _read_on_shard(q: jax.Array, tokens: tuple) -> jax.Array:
    """The softmax over the tokens of all shards, from the sums of each."""
    keys, values, valid = tokens
    s = scores(q, keys, valid)
    top = lax.stop_gradient(lax.pmax(lax.stop_gradient(jnp.max(s, axis=-1, keepdims=True)), AXIS))
    e = jnp.exp(s - top)
    o = lax.psum(jnp.einsum("bkgtm,bmkh->btkgh", e, values), AXIS)
    z = lax.psum(jnp.sum(e, axis=-1), AXIS)
    return (o / jnp.moveaxis(z, 3, 1)[..., None]).reshape(*q.shape[:3], values.shape[-1])


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
    return jax.nn.softmax(scores(q, keys, seen), axis=-1)


def scores(q: jax.Array, keys: jax.Array, seen: jax.Array | None) -> jax.Array:
    """What `weights` are the softmax of."""
    batch, length, heads, size = q.shape
    grouped = q.astype(keys.dtype).reshape(batch, length, keys.shape[2], -1, size)
    s = jnp.einsum("btkgh,bmkh->bkgtm", grouped, keys) * size**-0.5
    return s if seen is None else jnp.where(seen[:, None, None, None], s, jnp.finfo(s.dtype).min)


def flops(batch: int, queries: int, keys: int, landmarks: int, heads: int, kv_heads: int, size: int) -> int:
    """Matrix-product FLOPs of compressing keys and values, and of attending to them."""
    return 4 * batch * landmarks * size * (keys * kv_heads + queries * heads)
