"""Sliding-window attention: the nearest tokens (arXiv:2004.05150, section 3.1; arXiv:2310.06825)."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx

from transformer_jax.attention.contract import Capability
from transformer_jax.attention.engines.softmax_mixer import RingMixer
from transformer_jax.attention.engines.softmax_plan import band
from transformer_jax.errors import BadInput


class SlidingWindow(RingMixer):
    """A token sees those less than `window` away: itself and window − 1 before it, and, when it sees
    both directions, window − 1 after it.

    So do GPT-Neo and Mistral count; Longformer's w, of both sides together and without the token, is
    2 (window − 1). The state is a ring of the last `window` keys and values.
    """

    name = "sliding_window"
    paper = "arXiv:2004.05150"
    time = "T·w"
    state = "w"
    capability = Capability(
        refused={"cross": "a window is around a token's own place, which a token of x lacks in a context."},
        notes={
            "causal": "the window counts the token itself: 0 ≤ i − j < window",
            "bidirectional": "the window reaches as far to both sides: |i − j| < window",
        },
    )
    small = {"window": 8}

    def __init__(self, geometry, *, window: int = 64, rngs: nnx.Rngs):
        if window < 1:
            raise BadInput(f"window={window} must be at least 1: a token sees itself.")
        super().__init__(geometry, rngs=rngs)
        self.window = window

    def definition(self, q, k, v):
        """Section 3.1: softmax(Q Kᵀ / √H) V, each query over its window."""
        i, j = jnp.arange(len(q))[:, None], jnp.arange(len(k))[None]
        scores = jnp.where(self.sees(i, j), q @ k.T / jnp.sqrt(q.shape[-1]), -jnp.inf)
        return jax.nn.softmax(scores, axis=-1) @ v

    def sees(self, i, j):
        if self.geometry.causal:
            return (j <= i) & (i - j < self.window)
        return jnp.abs(i - j) < self.window

    def plan(self, queries, keys):
        reach = self.window - 1
        return band(queries, keys, before=reach, after=0 if self.geometry.causal else reach)
