"""ReLU linear attention: softmax's kernel replaced by a product of rectified queries and keys."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from transformer_jax.attention.core import repeat_heads
from transformer_jax.attention.engines.forms import Recurrence
from transformer_jax.attention.engines.recurrence_mixer import RecurrenceMixer


class ReLULinear(RecurrenceMixer):
    """The linear attention of EfficientViT (arXiv:2205.14756), there in both directions; causal, over s ≤ t.

    A query that no key answers (all its products are 0) reads 0. The authors' code adds an ε to the
    normalizer instead, which says the same there and shrinks small sums elsewhere.
    """

    name = "relu_linear"
    paper = "arXiv:2205.14756"

    def definition(self, q, k, v):
        """Section 3.1: O_t = Σ_s ReLU(Q_t) ReLU(K_s)ᵀ V_s / Σ_s ReLU(Q_t) ReLU(K_s)ᵀ."""
        A = jax.nn.relu(q) @ jax.nn.relu(k).T
        if self.geometry.causal:
            A = jnp.tril(A)
        z = A.sum(axis=1, keepdims=True)
        return A @ v / jnp.where(z > 0, z, 1)

    def recurrence(self, streams):
        heads = self.geometry.heads
        q, k, v = (repeat_heads(streams[name], heads) for name in ("q", "k", "v"))
        return Recurrence(q=jax.nn.relu(q), k=jax.nn.relu(k), v=v, normalizer="sum")
