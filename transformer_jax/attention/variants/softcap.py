"""Attention whose logits are bent to stay below a cap, as in Gemma 2 (arXiv:2408.00118)."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx

from transformer_jax.attention.variants.full import Full
from transformer_jax.errors import BadInput


class Softcap(Full):
    """Full attention whose logits stay between −cap and cap, near linear where they are small.

    The cap comes after the division by √H and before the mask, so that what is hidden stays hidden. The
    paper's 50 is the default. The cap of the output logits (30) and the alternation with windows belong to
    the model, not to the mechanism.
    """

    name = "softcap"
    paper = "arXiv:2408.00118"
    small = {"cap": 0.5}

    def __init__(self, geometry, *, cap: float = 50.0, rngs: nnx.Rngs):
        if not cap > 0:
            raise BadInput(f"softcap cap={cap} bounds the size of the logits: give a number above 0.")
        super().__init__(geometry, rngs=rngs)
        self.cap = cap

    def definition(self, q, k, v):
        """softmax(soft_cap · tanh(S / soft_cap)) V with S = Q Kᵀ / √H  (section 2)."""
        scores = self.cap * jnp.tanh(q @ k.T / jnp.sqrt(q.shape[-1]) / self.cap)
        if self.geometry.causal:
            i, j = jnp.arange(len(q))[:, None], jnp.arange(len(k))[None]
            scores = jnp.where(j <= i, scores, -jnp.inf)
        return jax.nn.softmax(scores, axis=-1) @ v

    @property
    def soft_cap(self):
        return self.cap

    def logit(self, s, query, key):
        return self.cap * jnp.tanh(s / self.cap)
