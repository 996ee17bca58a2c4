"""Softmax over time of every channel by itself, with biases between places that all channels share.

    o_tc = Σ_s exp(w_ts + k_sc) v_sc / Σ_s exp(w_ts + k_sc),    w_ts = u_tᵀ r_s

u and r are (1 or B, T, F): with 1, all rows of a batch have the same biases. k and v are (B, S, C). What is
hidden has k = −∞, and results are o and the logs of the sums of weights, lse, both (B, T, C); where nothing
is seen they are 0 and −∞.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax

from transformer_jax.attention.engines.softmax import merge

Softmax = tuple[jax.Array, jax.Array]
"""o and lse."""

BLOCK = 32
"""Tokens of a causal block, whose weights on each other are formed channel by channel."""


def biases(u: jax.Array, r: jax.Array) -> jax.Array:
    """w (1 or B, T, S)."""
    return jnp.einsum("btf,bsf->bts", u, r)


def by_factors(w: jax.Array, seen: jax.Array, k: jax.Array, v: jax.Array) -> Softmax:
    """o and lse with weights as products exp(w_ts) exp(k_sc), which are two matrix products.

    Each factor has its largest divided out. Keys may differ by any amount among those that all queries see;
    what w alone, of (1 or B, T, S), makes e⁴⁰ times smaller than its largest is lost in float32. `seen`
    broadcasts to w.
    """
    finite = lambda top: lax.stop_gradient(jnp.where(jnp.isfinite(top), top, 0))
    w = jnp.where(seen, w, -jnp.inf)
    a, b = finite(jnp.max(w, axis=2, keepdims=True)), finite(jnp.max(k, axis=1, keepdims=True))
    p = jnp.exp(k - b)
    o, z = jnp.split(jnp.matmul(jnp.exp(w - a), jnp.concatenate([p * v, p], axis=-1)), 2, axis=-1)
    some = z > float(jnp.finfo(z.dtype).tiny) ** 0.5  # whose square the gradient divides by
    z = jnp.where(some, z, 1)
    return jnp.where(some, o / z, 0), jnp.where(some, jnp.log(z) + a + b, -jnp.inf)


def by_channel(w: jax.Array, seen: jax.Array, k: jax.Array, v: jax.Array) -> Softmax:
    """The same with every sum w_ts + k_s formed: memory is T·S·C."""
    logits = jnp.where(seen[..., None], w[..., None] + k[:, None], -jnp.inf)
    top = lax.stop_gradient(jnp.max(logits, axis=2))
    top = jnp.where(jnp.isfinite(top), top, 0)
    e = jnp.exp(logits - top[:, :, None])
    z = jnp.sum(e, axis=2)
    some = jnp.where(z > 0, z, 1)
    return jnp.sum(e * v[:, None], axis=2) / some, jnp.where(z > 0, jnp.log(some) + top, -jnp.inf)


def joined(parts: list[Softmax]) -> Softmax:
    """One softmax from those over disjoint keys."""
    o, lse = merge([(o[..., None], lse) for o, lse in parts])
    return o[..., 0], lse


def padded(length: int) -> int:
    """Tokens of the blocks that `causal` computes."""
    block = min(BLOCK, length)
    return -(-length // block) * block


def causal(u: jax.Array, r: jax.Array, segment: jax.Array, k: jax.Array, v: jax.Array) -> Softmax:
    """Each token's weights on those up to itself, in blocks: earlier ones by factors, those of its block by
    channel. `segment` is (1 or B, T)."""
    batch, length, channels = k.shape
    block = min(BLOCK, length)
    added = padded(length) - length
    pad = lambda x, filling: jnp.pad(
        x, [(0, added * (axis == 1)) for axis in range(x.ndim)], constant_values=filling
    )
    u, r, v, k, segment = pad(u, 0), pad(r, 0), pad(v, 0), pad(k, -jnp.inf), pad(segment, -1)
    index = jnp.arange(length + added)[None]

    def body(_, start):
        take = lambda x, axis=1: lax.dynamic_slice_in_dim(x, start, block, axis)
        w, own = biases(take(u), r), take(segment)
        going = own[:, :1]  # of the segments before this block only one can go on
        earlier = ((index < start) & (segment == going))[..., None]
        before = by_factors(w, (own == going)[..., None], jnp.where(earlier, k, -jnp.inf), v)
        seen = jnp.tril(own[:, :, None] == own[:, None])
        return None, joined([before, by_channel(take(w, 2), seen, take(k), take(v))])

    _, found = lax.scan(jax.checkpoint(body, prevent_cse=False), None, jnp.arange(0, length + added, block))
    o, lse = (jnp.moveaxis(x, 0, 1).reshape(batch, -1, channels)[:, :length] for x in found)
    return o, lse
