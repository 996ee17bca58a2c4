"""What several recurrences share: keys of unit length, and the decays of a state space at their start."""

from __future__ import annotations

import jax
import jax.numpy as jnp


def unit(x: jax.Array) -> jax.Array:
    """x / √(|x|² + 1e-6) along the last axis: of unit length unless x is all but zero."""
    square = jnp.sum(jnp.square(x.astype(jnp.promote_types(jnp.float32, x.dtype))), axis=-1, keepdims=True)
    return (x * jax.lax.rsqrt(square + 1e-6)).astype(x.dtype)


def time_step_bias(key: jax.Array, size: int) -> jax.Array:
    """(size,): softplus of it is log-uniform in [0.001, 0.1], as in Mamba-2 (arXiv:2405.21060)."""
    dt = jnp.exp(jax.random.uniform(key, (size,), minval=jnp.log(0.001), maxval=jnp.log(0.1)))
    return dt + jnp.log(-jnp.expm1(-dt))


def log_rate(key: jax.Array, size: int) -> jax.Array:
    """(size,): e to it is uniform in [1, 16], as in Mamba-2."""
    return jnp.log(jax.random.uniform(key, (size,), minval=1.0, maxval=16.0))
