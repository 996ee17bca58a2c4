"""A mixer whose core is a linear recurrence."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from transformer_jax.attention.contract import Capability, Layout
from transformer_jax.attention.core import Streams
from transformer_jax.attention.engines import forms
from transformer_jax.attention.engines.forms import Recurrence
from transformer_jax.attention.heads import HeadMixer


class RecurrenceMixer(HeadMixer):
    """A variant says what its streams are to the recurrence; this executes them in both directions.

    Cross-attention, where a variant defines it, sums over the whole context.
    """

    family = "linear recurrence"
    time = "T"
    state = "1"
    capability = Capability(sequence="parallel")
    chunk: int | None = None
    """Tokens executed in parallel, None for the engine's choice; no result depends on it."""

    def recurrence(self, streams: Streams) -> Recurrence:
        """The streams of this mechanism as those of the general form, all with N heads."""
        raise NotImplementedError

    def core(self, streams, layout, state):
        r = self.recurrence(streams)
        if self.geometry.causal:
            return forms.recur(r, layout, state, self.chunk)
        return forms.recur_both_ways(r, layout, self.chunk), {}

    def init_state(self, batch):
        self.capability.require("decoding", self.name)
        return forms.empty_state(self._shapes(batch, 1))

    def feature_flops(self, batch: int, length: int) -> int:
        """Matrix-product FLOPs of `recurrence`."""
        return 0

    def core_flops(self, batch, length):
        executed = forms.recurrence_flops(self._shapes(batch, length), self.direction, self.chunk)
        return self.feature_flops(batch, length) + executed

    @property
    def direction(self) -> str:
        return "causal" if self.geometry.causal else "bidirectional"

    def _shapes(self, batch: int, length: int) -> Recurrence:
        x = jax.ShapeDtypeStruct((batch, length, self.geometry.width), jnp.dtype(self.geometry.dtype))
        layout = Layout.plain(batch, length)
        return jax.eval_shape(lambda x: self.recurrence(self.streams(x, layout)[0]), x)
