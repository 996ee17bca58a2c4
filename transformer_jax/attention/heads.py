"""Multi-head projections around a core: x → (q, k, v, …) → core → output projection."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx

from transformer_jax.attention.contract import Geometry, Layout, Mixer, State
from transformer_jax.attention.rotary import rotate
from transformer_jax.errors import BadInput

Streams = dict[str, jax.Array]


class HeadMixer(Mixer):
    """q, k, v projections, a core on them, and an output projection.

    A subclass gives the meaning, `definition`, on the streams of one head of one plain sequence, and
    an engine gives the execution, `core`, on all of them.
    """

    def __init__(self, geometry: Geometry, *, rngs: nnx.Rngs):
        super().__init__(geometry)
        g = geometry
        self.query = self.linear(g.width, g.heads * g.head_size, rngs)
        self.key = self.linear(g.width, g.kv_heads * g.head_size, rngs)
        self.value = self.linear(g.width, g.kv_heads * g.head_size, rngs)
        self.out = self.linear(g.heads * g.head_size, g.width, rngs)

    def linear(self, inputs: int, outputs: int, rngs: nnx.Rngs) -> nnx.Linear:
        return nnx.Linear(inputs, outputs, use_bias=False, dtype=jnp.dtype(self.geometry.dtype), rngs=rngs)

    def definition(self, q: jax.Array, k: jax.Array, v: jax.Array, **streams: jax.Array) -> jax.Array:
        """What this mechanism computes, in the paper's notation, for one head of one sequence.

        Args:
          q: (T, H). k: (S, H). v: (S, any): the mechanism is linear in v, so v = I gives the
            effective matrix. Further streams of `self.streams` come under their names, as (T, ...).

        Returns:
          (T, size of v). Written for eyes and float64, never for speed.
        """
        raise NotImplementedError

    def streams(
        self, x: jax.Array, layout: Layout, state: State | None = None, context: jax.Array | None = None
    ) -> tuple[Streams, State]:
        """Projects x to q (B, T, N, H), k and v (B, S, K, H); also the part of the state it moved."""
        g = self.geometry
        source = x if context is None else context
        q = self.query(x).reshape(*x.shape[:2], g.heads, g.head_size)
        k = self.key(source).reshape(*source.shape[:2], g.kv_heads, g.head_size)
        v = self.value(source).reshape(*source.shape[:2], g.kv_heads, g.head_size)
        if g.rotary is not None and context is None:
            q, k = rotate(q, layout.positions, g.rotary), rotate(k, layout.positions, g.rotary)
        return {"q": q, "k": k, "v": v}, {}

    def core(self, streams: Streams, layout: Layout, state: State | None) -> tuple[jax.Array, State]:
        """The engine's execution: streams → (B, T, N, H), and the part of the state it moved."""
        raise NotImplementedError

    def core_flops(self, batch: int, length: int) -> int:
        """Matrix-product FLOPs of `core`."""
        raise NotImplementedError

    def finish(self, o: jax.Array, x: jax.Array) -> jax.Array:
        """Joins the heads: o (B, T, N, H) → (B, T, D)."""
        return self.out(o.reshape(*o.shape[:2], -1).astype(x.dtype))

    def __call__(self, x, layout, state=None, context=None):
        self.admit(layout, state, context)
        streams, moved = self.streams(x, layout, state, context)
        if context is not None:
            if self.geometry.causal:
                raise BadInput(
                    f"{self.name} of a context has no before and after: build the layer with causal=False."
                )
            # Lengths and segments are those of x, not of the context: all of the context is seen.
            layout = Layout(layout.positions)
        o, core_moved = self.core(streams, layout, state)
        return self.finish(o, x), None if state is None else {**state, **moved, **core_moved}

    def projection_flops(self, batch: int, length: int) -> int:
        g = self.geometry
        return 4 * batch * length * g.width * g.head_size * (g.heads + g.kv_heads)

    def flops(self, batch, length):
        return self.projection_flops(batch, length) + self.core_flops(batch, length)


def repeat_heads(x: jax.Array, heads: int) -> jax.Array:
    """(B, S, K, H) → (B, S, N, H): query head n reads key-value head n // (N / K)."""
    return x if x.shape[2] == heads else jnp.repeat(x, heads // x.shape[2], axis=2)
