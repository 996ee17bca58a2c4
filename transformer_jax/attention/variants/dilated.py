"""A window with gaps: dilated sliding window attention (Longformer, arXiv:2004.05150, section 3.1)."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx

from transformer_jax.attention.contract import Capability
from transformer_jax.attention.engines.softmax_mixer import RingMixer
from transformer_jax.attention.engines.softmax_plan import band
from transformer_jax.errors import BadInput


class Dilated(RingMixer):
    """A window whose tokens lie `dilation` apart: it reaches that many times as far at the same work.

    `window` counts the tokens that are seen, to one side and the token itself; with a dilation of 1 it is
    `sliding_window`. All heads have the same dilation; the paper also varies it over heads and layers. A
    stream of every dilation-th token is a sequence by itself, and decoding keeps the last ones of each. With
    its sequence cut over devices, a device asks its neighbours for the dilation · (window − 1) tokens before
    its own.
    """

    name = "dilated"
    paper = "arXiv:2004.05150"
    time = "T·w"
    state = "w·d"
    capability = Capability(
        refused={"cross": "a window is around a token's own place, which a token of x lacks in a context."},
        notes={
            "causal": "(i − j) mod dilation = 0 and 0 ≤ i − j < dilation · window",
            "bidirectional": "(i − j) mod dilation = 0 and |i − j| < dilation · window",
        },
    )
    small = {"window": 4, "dilation": 3}

    def __init__(self, geometry, *, window: int = 64, dilation: int = 2, rngs: nnx.Rngs):
        if window < 1 or dilation < 1:
            raise BadInput(f"dilated window={window} and dilation={dilation} must be at least 1.")
        super().__init__(geometry, rngs=rngs)
        self.window, self.dilation = window, dilation

    def definition(self, q, k, v):
        """Section 3.1: softmax(Q Kᵀ / √H) V, each query over its dilated window."""
        i, j = jnp.arange(len(q))[:, None], jnp.arange(len(k))[None]
        scores = jnp.where(self.sees(i, j), q @ k.T / jnp.sqrt(q.shape[-1]), -jnp.inf)
        return jax.nn.softmax(scores, axis=-1) @ v

    def sees(self, i, j):
        near = jnp.abs(i - j) < self.dilation * self.window
        seen = near & ((i - j) % self.dilation == 0)
        return seen & (j <= i) if self.geometry.causal else seen

    def plan(self, queries, keys):
        """A window of one of the interleaved sequences."""
        reach = self.window - 1
        return band(queries, keys, before=reach, after=0 if self.geometry.causal else reach)

    @property
    def slots(self):
        return self.dilation * (self.window - 1) + 1

    def among(self, streams, layout):
        return super().among(streams, layout, step=self.dilation)

    def core_flops(self, batch, length):
        return self.dilation * super().core_flops(batch, -(-length // self.dilation))
