"""A causal convolution of each channel with a filter as long as the sequence, by the FFT."""

from __future__ import annotations

import jax
import jax.numpy as jnp


def convolve(x: jax.Array, h: jax.Array) -> jax.Array:
    """(h ∗ x)_t = Σ_{s≤t} h_{t−s} x_s: x (B, T, C) with h (T, C) → (B, T, C), in float32 at least.

    Both are padded to 2T at least, so that nothing wraps around to earlier tokens.
    """
    length = x.shape[1]
    size = 1 << (2 * length - 1).bit_length()
    spectrum = jnp.fft.rfft(exact(x), size, axis=1) * jnp.fft.rfft(exact(h), size, axis=0)[None]
    return jnp.fft.irfft(spectrum, size, axis=1)[:, :length]


def at(x: jax.Array, h: jax.Array, t: jax.Array) -> jax.Array:
    """(h ∗ x)_t for one t of each row, (B,): (B, C), by the sum itself."""
    lag = t[:, None] - jnp.arange(x.shape[1])[None]
    taps = jnp.where((lag >= 0)[..., None], exact(h)[jnp.maximum(lag, 0)], 0)
    return jnp.sum(taps * exact(x), axis=1)


def exact(x: jax.Array) -> jax.Array:
    return x.astype(jnp.promote_types(jnp.float32, x.dtype))
