"""Efficient attention: two softmaxes, over the channels of a query and over the positions of a key."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from transformer_jax.attention.contract import Capability
from transformer_jax.attention.core import repeat_heads
from transformer_jax.attention.engines.forms import Recurrence
from transformer_jax.attention.engines.pool import over_positions
from transformer_jax.attention.engines.recurrence_mixer import RecurrenceMixer


class Efficient(RecurrenceMixer):
    """Efficient attention: attention with linear complexities (arXiv:1812.01243), softmax normalization.

    Every row of the effective matrix sums to 1 without a normalizer of its own. Nothing is divided by √H. The
    authors' layer adds its input, which here the model's residual does.
    """

    name = "efficient"
    paper = "arXiv:1812.01243"
    state = "none"
    capability = Capability(
        refused={
            "causal": "each key channel is normalized over all positions, before and after.",
            "decoding": "each key channel is normalized over positions that are still to come.",
        }
    )

    def definition(self, q, k, v):
        """Section 3.2: E(Q, K, V) = ρ_q(Q) (ρ_k(K)ᵀ V), softmax of each row of Q and of each column of K."""
        return jax.nn.softmax(q, axis=1) @ (jax.nn.softmax(k, axis=0).T @ v)

    def core(self, streams, layout, state):
        return super().core(streams | {"k": over_positions(streams["k"], layout)}, layout, state)

    def recurrence(self, streams):
        """Of keys that are normalized already: nothing decays, the sum is over all of them."""
        heads = self.geometry.heads
        q = streams["q"].astype(jnp.promote_types(jnp.float32, streams["q"].dtype))
        k, v = repeat_heads(streams["k"], heads), repeat_heads(streams["v"], heads)
        return Recurrence(q=jax.nn.softmax(q, axis=-1), k=k, v=v)
