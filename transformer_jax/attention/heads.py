"""Multi-head projections around a core: x → (q, k, v, …) → core → output projection."""

from __future__ import annotations

import jax
from flax import nnx

from transformer_jax.attention.contract import Geometry
from transformer_jax.attention.core import CoreMixer, linear_flops
from transformer_jax.attention.rotary import rotate


class HeadMixer(CoreMixer):
    """q, k, v projections, a core on them, and an output projection."""

    key_size: int = 0
    """Channels of q and k, H unless a subclass says otherwise before its projections are made; v has H."""

    def __init__(self, geometry: Geometry, *, rngs: nnx.Rngs):
        super().__init__(geometry)
        g = geometry
        self.key_size = self.key_size or g.head_size
        self.query = self.linear(g.width, g.heads * self.key_size, rngs)
        self.key = self.linear(g.width, g.kv_heads * self.key_size, rngs)
        self.value = self.linear(g.width, g.kv_heads * g.head_size, rngs)
        self.out = self.joining(g.heads * g.head_size, rngs)

    def streams(self, x, layout, state=None, context=None):
        """q (B, T, N, H), k and v (B, S, K, H)."""
        q, k, v = self.projected(x, x if context is None else context)
        if context is None:
            q, k = self.placed(q, layout.positions), self.placed(k, layout.positions)
        return {"q": q, "k": k, "v": v}, {}

    def projected(self, x: jax.Array, source: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        """q of x, k and v of `source`, before their positions."""
        g = self.geometry
        q = self.query(x).reshape(*x.shape[:2], g.heads, self.key_size)
        k = self.key(source).reshape(*source.shape[:2], g.kv_heads, self.key_size)
        v = self.value(source).reshape(*source.shape[:2], g.kv_heads, g.head_size)
        return q, k, v

    def placed(self, x: jax.Array, positions: jax.Array) -> jax.Array:
        """q or k with its position in it: rotated, where the model rotates."""
        return x if self.geometry.rotary is None else rotate(x, positions, self.geometry.rotary)

    def finish(self, o, x):
        return self.out(o.reshape(*o.shape[:2], -1).astype(x.dtype))

    def projection_flops(self, batch, length):
        return linear_flops(batch * length, self.query, self.key, self.value, self.out)
