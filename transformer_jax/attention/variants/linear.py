"""Linear attention: softmax's kernel replaced by a product of feature maps."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from transformer_jax.attention.core import repeat_heads
from transformer_jax.attention.engines.forms import Recurrence
from transformer_jax.attention.engines.recurrence_mixer import RecurrenceMixer


def phi(x: jax.Array) -> jax.Array:
    """Equation 7: elu(x) + 1, positive."""
    return jax.nn.elu(x) + 1


class Linear(RecurrenceMixer):
    """Transformers are RNNs (arXiv:2006.16236).

    Causal, the sums of equations 16–20 are a state: S_t = S_{t−1} + φ(k_t) v_tᵀ, z_t = z_{t−1} + φ(k_t).
    Nothing is divided by √H. The authors' code adds 1e-6 to the normalizer, which is positive without it.
    """

    name = "linear"
    paper = "arXiv:2006.16236"

    def definition(self, q, k, v):
        """Equations 4–5 and 8–9: V'_t = Σ_s φ(Q_t)ᵀφ(K_s) V_s / Σ_s φ(Q_t)ᵀφ(K_s), over s ≤ t if causal."""
        A = phi(q) @ phi(k).T
        if self.geometry.causal:
            A = jnp.tril(A)
        return A @ v / A.sum(axis=1, keepdims=True)

    def recurrence(self, streams):
        heads = self.geometry.heads
        q, k, v = (repeat_heads(streams[name], heads) for name in ("q", "k", "v"))
        return Recurrence(q=phi(q), k=phi(k), v=v, normalizer="sum")
