"""Rotary position embedding (arXiv:2104.09864, equation 34)."""

from __future__ import annotations

import jax
import jax.numpy as jnp


def rotate(x: jax.Array, positions: jax.Array, base: float = 10_000.0) -> jax.Array:
    """Turns channel pair (i, i + H/2) of x (B, T, N, H) by positions (B, T) · base^(−2i/H).

    The paper pairs neighbouring channels; pairing halves is the same map after a fixed permutation
    of channels, and is what most published weights use.
    """
    half = x.shape[-1] // 2
    accurate = jnp.promote_types(jnp.float32, x.dtype)
    rates = base ** (-jnp.arange(half, dtype=accurate) / half)
    angles = positions[..., None, None].astype(accurate) * rates[None, None, None]
    cos, sin = jnp.cos(angles), jnp.sin(angles)
    a, b = x[..., :half].astype(accurate), x[..., half:].astype(accurate)
    return jnp.concatenate([a * cos - b * sin, a * sin + b * cos], axis=-1).astype(x.dtype)
