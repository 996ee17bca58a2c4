"""What all tokens of a segment have together: their sum, their largest, their softmax."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp

from transformer_jax.attention.contract import Layout


def pooled(reduce: Literal["sum", "max"], x: jax.Array, layout: Layout) -> jax.Array:
    """x (B, S, …) reduced along S over the segment of each token: (B, S, …), or (B, 1, …) where each row is
    one segment. Padding is the caller's to make harmless."""
    if layout.segments is None:
        whole: Callable = jnp.sum if reduce == "sum" else jnp.max
        return whole(x, axis=1, keepdims=True)
    number = jnp.cumsum(layout.starts(), axis=1)  # of the segment in its row, below S
    each: Callable = jax.ops.segment_sum if reduce == "sum" else jax.ops.segment_max
    return jax.vmap(lambda x, number: each(x, number, num_segments=len(x))[number])(x, number)


def over_positions(k: jax.Array, layout: Layout) -> jax.Array:
    """Softmax of k (B, S, …) along S, over the valid positions of each segment."""
    k = k.astype(jnp.promote_types(jnp.float32, k.dtype))
    if layout.valid is not None:
        k = jnp.where(layout.valid.reshape(*layout.valid.shape, *(1,) * (k.ndim - 2)), k, -jnp.inf)
    top = pooled("max", k, layout)
    # A row of nothing but padding has no largest key, and gives 0.
    e = jnp.exp(k - jax.lax.stop_gradient(jnp.where(top == -jnp.inf, 0, top)))
    z = pooled("sum", e, layout)
    return e / jnp.where(z > 0, z, 1)
