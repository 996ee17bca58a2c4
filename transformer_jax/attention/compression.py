"""Blocks of tokens made one vector each by a small network."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx


class Compression(nnx.Module):
    """φ of native sparse attention (arXiv:2502.11089, equation 7): to each of the `length` vectors of size H
    of a block a learned one is added for its place, and all together go through an MLP with H hidden units.

    In float32 at least, and shared by the heads.
    """

    def __init__(self, length: int, size: int, *, rngs: nnx.Rngs):
        normal = lambda *shape: jax.random.normal(rngs.params(), shape) / shape[0] ** 0.5
        self.places = nnx.Param(jnp.zeros((length, size)))
        self.inner = nnx.Param(normal(length * size, size))
        self.outer = nnx.Param(normal(size, size))

    def __call__(self, blocks: jax.Array) -> jax.Array:
        """(…, length, H) → (…, H)."""
        x = blocks.astype(jnp.promote_types(jnp.float32, blocks.dtype))
        places, inner, outer = (p[...].astype(x.dtype) for p in (self.places, self.inner, self.outer))
        x = (x + jnp.broadcast_to(places, x.shape)).reshape(*x.shape[:-2], inner.shape[0])
        return jax.nn.gelu(x @ inner) @ outer

    def flops(self, blocks: int) -> int:
        """Matrix-product FLOPs of that many blocks."""
        return 2 * blocks * (self.inner[...].size + self.outer[...].size)
