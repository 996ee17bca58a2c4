"""FNet: tokens are mixed by a Fourier transform, without anything learned."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax

from transformer_jax.attention.contract import Capability, Geometry
from transformer_jax.attention.core import CoreMixer


class FNet(CoreMixer):
    """FNet (arXiv:2105.03824): the real part of the Fourier transform over the sequence and the width.

    It has no heads, no projections and no parameters. As in the paper the transform is not divided by
    √(T·D): entries of order 1 become entries of order √(T·D), which the norm after a block brings back (a
    model that normalizes before its blocks only adds them up as they are). A model's rotary embedding is
    not applied.

    A padded row is transformed at its own length L, which is traced. With nk = (n² + k² − (k − n)²) / 2 the
    transform is a convolution with a chirp (Bluestein), whose size depends on T alone.
    """

    name = "fnet"
    family = "transform"
    paper = "arXiv:2105.03824"
    time = "T log T"
    state = "none"
    no_matrix = "it mixes the channels of a token too, so that no T×T matrix acts on each alike."
    capability = Capability(
        refused={
            "causal": "every frequency reads all tokens, so it would leak the future.",
            "cross": "the transform is that of one sequence.",
            "packing": "the transform is over a whole row, so it would mix documents.",
            "decoding": "every frequency reads all tokens, so each new token changes all outputs before it.",
        },
        sequence="gathered",
    )

    def __init__(self, geometry: Geometry, *, rngs: nnx.Rngs):
        super().__init__(geometry)

    @property
    def mixed_heads(self):
        return 1

    def definition(self, v):
        """Y = Re(F_T X F_D), (F_n)_jk = e^(−2πi jk / n)  (section 3)."""

        def F(n):
            jk = jnp.outer(jnp.arange(n), jnp.arange(n)) % n
            return jnp.exp(-2j * jnp.pi * jk.astype(v.dtype) / n)

        return jnp.real(F(v.shape[0]) @ v @ F(v.shape[1]))

    def streams(self, x, layout, state=None, context=None):
        return {"v": x[:, :, None]}, {}

    def core(self, streams, layout, state):
        x = streams["v"].astype(jnp.promote_types(jnp.float32, streams["v"].dtype))
        if layout.lengths is None:
            return jnp.real(jnp.fft.fft2(x, axes=(1, 3))), {}
        along = jnp.swapaxes(jnp.fft.fft(x[:, :, 0]), 1, 2)
        return jnp.swapaxes(jnp.real(jax.vmap(transform)(along, layout.lengths)), 1, 2)[:, :, None], {}

    def core_flops(self, batch, length):
        return 0

    def finish(self, o, x):
        return o[:, :, 0].astype(x.dtype)

    def projection_flops(self, batch, length):
        return 0


def transform(x: jax.Array, length: jax.Array) -> jax.Array:
    """The Fourier transform of the first `length` of x (…, T), complex, along T; the rest has no meaning."""
    T = x.shape[-1]
    size = 2 ** (2 * T - 1).bit_length()
    # n² grows beyond int32 and its phase beyond float32: both are kept modulo the period 2·length.
    odd = jnp.maximum(2 * jnp.arange(T) - 1, 0)
    square = lax.associative_scan(lambda a, b: (a + b) % (2 * jnp.maximum(length, 1)), odd)
    phase = jnp.pi * square.astype(x.real.dtype) / jnp.maximum(length, 1)
    chirp = lax.complex(jnp.cos(phase), -jnp.sin(phase))
    shape = (1,) * (x.ndim - 1) + (-1,)
    chirped = jnp.where(jnp.arange(T) < length, chirp, 0).reshape(shape)
    # e^(iπ(k − n)²/L) at k − n = 0 … T − 1, and wrapped around, at −1 … 1 − T.
    back = jnp.conj(chirp)
    kernel = jnp.zeros(size, x.dtype).at[:T].set(back).at[size - T + 1 :].set(back[:0:-1])
    kernel = jnp.fft.fft(kernel).reshape(shape)
    return jnp.fft.ifft(jnp.fft.fft(x * chirped, n=size) * kernel)[..., :T] * chirped
