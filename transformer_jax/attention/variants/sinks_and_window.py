"""Attention sinks and a window: the first tokens and the latest ones (StreamingLLM, arXiv:2309.17453)."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from transformer_jax.attention.contract import Capability
from transformer_jax.attention.engines import softmax_cache
from transformer_jax.attention.engines.softmax import merge
from transformer_jax.attention.engines.softmax_mixer import RingMixer
from transformer_jax.attention.engines.softmax_plan import band
from transformer_jax.errors import BadInput


class SinksAndWindow(RingMixer):
    """A token sees the first `sinks` tokens, and itself and window − 1 before it.

    The state is a ring of the last `window` keys, and those of the sinks. Positions are those of the text;
    the paper counts them anew within the state, which matters past the length that a model was trained at.
    As in the authors' cache, the window counts the token itself, and the state grows to sinks + window.
    """

    name = "sinks_and_window"
    paper = "arXiv:2309.17453"
    time = "T·(s + w)"
    state = "s + w"
    small = {"sinks": 3, "window": 8}
    capability = Capability(
        refused={
            "bidirectional": "it keeps what a stream began with and what came last, looking back.",
            "cross": "a window is around a token's own place, which a token of x lacks in a context.",
            "packing": "its sinks are counted from the start of a row, not of a segment.",
        }
    )

    def __init__(self, geometry, *, sinks: int = 4, window: int = 64, rngs: nnx.Rngs):
        if sinks < 1 or window < 1:
            raise BadInput(f"sinks={sinks} and window={window} count tokens: give 1 or more of each.")
        super().__init__(geometry, rngs=rngs)
        self.sinks, self.window = sinks, window

    def definition(self, q, k, v):
        """softmax(Q Kᵀ / √H) V, each query over the sinks and its window (section 3.2)."""
        i, j = jnp.arange(len(q))[:, None], jnp.arange(len(k))[None]
        seen = (j <= i) & ((j < self.sinks) | (i - j < self.window))
        return jax.nn.softmax(jnp.where(seen, q @ k.T / jnp.sqrt(q.shape[-1]), -jnp.inf), axis=-1) @ v

    def sees(self, i, j):
        """The window; `sees_sink` has the rest."""
        return (j <= i) & (i - j < self.window)

    def sees_sink(self, i, j):
        return (j < self.sinks) & (i - j >= self.window)

    def plan(self, queries, keys):
        return band(queries, keys, before=self.window - 1, after=0)

    def among(self, streams, layout):
        length = layout.positions.shape[1]
        places = np.arange(min(self.sinks, length))
        far = super().among(
            streams, layout, plan=band(length, len(places)), sees=self.sees_sink, places=places
        )
        return merge([super().among(streams, layout), far])

    def continued(self, streams, layout, state):
        q, new = streams["q"], {"k": streams["k"], "v": streams["v"]}
        where = softmax_cache.stands(layout, state["ring"])
        sinks = softmax_cache.store(state["sinks"], new, layout)
        far = softmax_cache.attend_cache(q, where, sinks, partial(self.score, sees=self.sees_sink))
        before = softmax_cache.attend_ring(q, where, state["ring"], self.score)
        found = merge([before, super().among(streams, layout), far])
        return found, {"ring": softmax_cache.store(state["ring"], new, layout, ring=True), "sinks": sinks}

    def init_state(self, batch):
        g = self.geometry
        sinks = softmax_cache.empty(batch, g.kv_heads, g.head_size, self.sinks, g.dtype)
        return {"ring": super().init_state(batch), "sinks": sinks}

    def core_flops(self, batch, length):
        g = self.geometry
        pairs = band(length, min(self.sinks, length)).pairs
        return super().core_flops(batch, length) + 4 * batch * g.heads * g.head_size * pairs
