"""A mixer whose core is an element-wise scan."""

from __future__ import annotations

from functools import partial
from typing import ClassVar

import jax
import jax.numpy as jnp

from transformer_jax.attention.contract import Capability
from transformer_jax.attention.core import CoreMixer, Streams
from transformer_jax.attention.engines.scan import compose, expanded_scan, summary
from transformer_jax.parallel.mesh import cuts_sequence
from transformer_jax.parallel.sequence import Shards, composed_before


class ScanMixer(CoreMixer):
    """A variant says what its streams are to h_t = a_t ⊙ h_{t−1} + b_t; this executes it in both directions.

    Each of the N·H channels is mixed by itself. All of it is element-wise: the core has no matrix products.
    """

    family = "element-wise scan"
    time = "T"
    state = "1"
    capability = Capability(sequence="parallel")
    chunk: ClassVar[int] = 128
    """Tokens executed in parallel; no result depends on it."""

    @property
    def mixed_heads(self):
        return self.geometry.heads * self.geometry.head_size

    @property
    def states(self) -> int:
        """Numbers of h per channel."""
        return 1

    def expand(self, streams: Streams) -> tuple[jax.Array, jax.Array]:
        """a_t and b_t (B, t, channels, states) of some tokens, in float32 at least, from their streams and
        from the `weights`. On a mesh they are those of a part of the channels."""
        raise NotImplementedError

    def read(self, h: jax.Array, streams: Streams) -> jax.Array:
        """o_t (B, t, channels, 1) of h_t, of some tokens."""
        return h

    def core(self, streams, layout, state):
        if state is not None:
            starts = layout.starts(state["segment"])
            o, h = self._forward(streams, self.weights(), starts, layout.valid, state["h"])
            return o, {"h": h, "segment": layout.last_segment(state["segment"])}
        inputs = streams, self.weights(), (layout.starts(), layout.ends(), layout.valid)
        if not cuts_sequence():
            return self._mixed(*inputs), {}
        shards = Shards.of(layout.positions.shape[0], self.mixed_heads)
        where = shards.streams(streams), shards.weights(inputs[1]), shards.streams(inputs[2])
        mixed = partial(self._mixed, forward=self._forward_on_shard)
        return shards.run(mixed, *zip(inputs, where, strict=True), out=shards.of_heads(self.mixed_heads)), {}

    def _mixed(self, streams, weights, tokens, forward=None):
        starts, ends, valid = tokens
        forward = forward or self._forward
        o, _ = forward(streams, weights, starts, valid)
        if self.geometry.causal:
            return o
        flip = lambda tree: jax.tree.map(lambda x: x[:, ::-1], tree)
        return o + flip(forward(flip(streams), weights, flip(ends), flip(valid), reverse=True)[0])

    def _forward(self, streams, weights, starts, valid, h=None, *, reverse=False):
        """Streams that are to run in `reverse` do already."""
        h = self._empty(len(streams["v"]), streams["v"].shape[2]) if h is None else h
        expand, read = (lambda x: self.expand(x | weights)), (lambda h, x: self.read(h, x | weights))
        return expanded_scan(expand, read, streams, h, starts=starts, valid=valid, chunk=self.chunk)

    def _forward_on_shard(self, streams, weights, starts, valid, *, reverse=False):
        """From the state that the shards before this one leave."""
        expand, h = (
            (lambda x: self.expand(x | weights)),
            self._empty(len(streams["v"]), streams["v"].shape[2]),
        )
        own = summary(expand, streams, h, starts, valid, self.chunk)
        nothing = jnp.ones_like(h), h
        h = composed_before(compose, own, nothing, reverse=reverse)[1]
        return self._forward(streams, weights, starts, valid, h)

    def _empty(self, batch: int, channels: int) -> jax.Array:
        exact = jnp.promote_types(jnp.float32, jnp.dtype(self.geometry.dtype))
        return jnp.zeros((batch, channels, self.states), exact)

    def init_state(self, batch):
        self.capability.require("decoding", self.name)
        return {"h": self._empty(batch, self.mixed_heads), "segment": jnp.full((batch,), -1, jnp.int32)}

    def core_flops(self, batch, length):
        return 0
