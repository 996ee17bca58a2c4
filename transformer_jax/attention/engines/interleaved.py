"""A sequence as `stride` interleaved ones, for patterns that see only every stride-th token."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from transformer_jax.attention.contract import Layout


def apart(x: jax.Array, stride: int) -> jax.Array:
    """(B, T, …) → (B·stride, ⌈T/stride⌉, …): row b·stride + r has the tokens r, r + stride, … of row b."""
    missing = -x.shape[1] % stride
    x = jnp.pad(x, [(0, missing if axis == 1 else 0) for axis in range(x.ndim)])
    x = jnp.moveaxis(x.reshape(x.shape[0], -1, stride, *x.shape[2:]), 2, 1)
    return x.reshape(-1, *x.shape[2:])


def together(x: jax.Array, stride: int, length: int) -> jax.Array:
    """The inverse of `apart`, for a sequence of `length` tokens."""
    x = jnp.moveaxis(x.reshape(-1, stride, *x.shape[1:]), 1, 2)
    return x.reshape(x.shape[0], -1, *x.shape[3:])[:, :length]


def layout_apart(layout: Layout, stride: int) -> Layout:
    """The layout of the interleaved rows."""
    batch, length = layout.positions.shape
    lengths = layout.lengths
    if lengths is None and length % stride:
        lengths = jnp.full((batch,), length)
    if lengths is not None:  # ⌈(length − r) / stride⌉ tokens are r, r + stride, …
        lengths = ((lengths[:, None] - jnp.arange(stride)[None] + stride - 1) // stride).reshape(-1)
    segments = None if layout.segments is None else apart(layout.segments, stride)
    return Layout(apart(layout.positions, stride), segments, lengths)
