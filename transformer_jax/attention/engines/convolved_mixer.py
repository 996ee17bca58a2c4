"""A linear recurrence whose queries, keys and values pass through short convolutions."""

from __future__ import annotations

import jax
from flax import nnx

from transformer_jax.attention.contract import Geometry, Layout, State
from transformer_jax.attention.convolution import ShortConvolution
from transformer_jax.attention.core import Streams
from transformer_jax.attention.engines.recurrence_mixer import RecurrenceMixer


class ConvolvedMixer(RecurrenceMixer):
    """q, k and v are projections of x, each convolved with `taps` taps per channel and passed through SiLU;
    k and v have the channels of `writes` heads in the place of one.

    Position is in the convolutions and in the order of the recurrence: a model's rotary embedding is not
    applied. The convolutions stay causal in both directions.
    """

    own_convolution = True

    def __init__(self, geometry: Geometry, *, taps: int, writes: int = 1, rngs: nnx.Rngs):
        super().__init__(geometry, rngs=rngs)
        if writes > 1:
            size = writes * geometry.kv_heads * geometry.head_size
            self.key, self.value = (self.linear(geometry.width, size, rngs) for _ in range(2))
        self.query_convolution = self.convolution(self.query, taps, rngs)
        self.key_convolution = self.convolution(self.key, taps, rngs)
        self.value_convolution = self.convolution(self.value, taps, rngs)

    def convolution(self, projection: nnx.Linear, taps: int, rngs: nnx.Rngs) -> ShortConvolution:
        return ShortConvolution(projection.out_features, taps, dtype=self.geometry.dtype, rngs=rngs)

    def convolved(self, x: jax.Array, layout: Layout, state: State | None) -> tuple[Streams, State]:
        """q, k, v of x, each (B, T, channels), and the parts of the state that they moved."""
        streams, moved = {}, {}
        for stream, name, project, convolution in (
            ("q", "query", self.query, self.query_convolution),
            ("k", "key", self.key, self.key_convolution),
            ("v", "value", self.value, self.value_convolution),
        ):
            y, moved[name] = convolution(project(x), layout, None if state is None else state[name])
            streams[stream] = jax.nn.silu(y)
        return streams, moved

    def init_state(self, batch):
        return super().init_state(batch) | {
            "query": self.query_convolution.init_state(batch),
            "key": self.key_convolution.init_state(batch),
            "value": self.value_convolution.init_state(batch),
        }
