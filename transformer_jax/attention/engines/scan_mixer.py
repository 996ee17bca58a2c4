"""A mixer whose core is an element-wise scan."""

from __future__ import annotations

from typing import ClassVar

import jax
import jax.numpy as jnp

from transformer_jax.attention.contract import Layout
from transformer_jax.attention.core import CoreMixer, Streams
from transformer_jax.attention.engines.scan import expanded_scan


class ScanMixer(CoreMixer):
    """A variant says what its streams are to h_t = a_t ⊙ h_{t−1} + b_t; this executes it in both directions.

    Each of the N·H channels is mixed by itself. All of it is element-wise: the core has no matrix products.
    """

    family = "element-wise scan"
    time = "T"
    state = "1"
    chunk: ClassVar[int] = 128
    """Tokens executed in parallel; no result depends on it."""

    @property
    def mixed_heads(self):
        return self.geometry.heads * self.geometry.head_size

    @property
    def state_shape(self) -> tuple[int, ...]:
        """Of h, per channel and in all."""
        return (self.mixed_heads, 1)

    def expand(self, streams: Streams) -> tuple[jax.Array, jax.Array]:
        """a_t and b_t (B, t, *state_shape) of some tokens, in float32 at least."""
        raise NotImplementedError

    def read(self, h: jax.Array, streams: Streams) -> jax.Array:
        """o_t (B, t, channels, 1) of h_t, of some tokens."""
        return h

    def core(self, streams, layout, state):
        if not self.geometry.causal:
            flip = lambda tree: jax.tree.map(lambda x: x[:, ::-1], tree)
            valid = layout.valid
            backward = Layout(*flip((layout.positions, layout.segments)))
            o, _ = self._forward(streams, layout.starts(), valid)
            o_back, _ = self._forward(flip(streams), backward.starts(), flip(valid))
            return o + flip(o_back), {}
        if state is None:
            return self._forward(streams, layout.starts(), layout.valid)[0], {}
        o, h = self._forward(streams, layout.starts(state["segment"]), layout.valid, state["h"])
        return o, {"h": h, "segment": layout.last_segment(state["segment"])}

    def _forward(self, streams, starts, valid, h=None):
        h = self._empty(streams["v"].shape[0]) if h is None else h
        return expanded_scan(self.expand, self.read, streams, h, starts=starts, valid=valid, chunk=self.chunk)

    def _empty(self, batch: int) -> jax.Array:
        exact = jnp.promote_types(jnp.float32, jnp.dtype(self.geometry.dtype))
        return jnp.zeros((batch, *self.state_shape), exact)

    def init_state(self, batch):
        self.capability.require("decoding", self.name)
        return {"h": self._empty(batch), "segment": jnp.full((batch,), -1, jnp.int32)}

    def core_flops(self, batch, length):
        return 0
