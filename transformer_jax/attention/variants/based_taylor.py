"""The linear attention of Based: softmax's exponential replaced by its second-order Taylor polynomial."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from transformer_jax.attention.contract import Geometry
from transformer_jax.attention.core import repeat_heads
from transformer_jax.attention.engines.forms import Recurrence
from transformer_jax.attention.engines.recurrence_mixer import RecurrenceMixer
from transformer_jax.errors import BadInput


def taylor(x: jax.Array) -> jax.Array:
    """φ with φ(q)ᵀφ(k) = 1 + s + s²/2, s = qᵀk/√d, for x (B, T, N, d).

    The paper has all d² products x_i x_j; those with i < j appear twice there, and once here times √2.
    """
    d = x.shape[-1]
    i, j = np.triu_indices(d)
    weight = jnp.asarray(np.where(i == j, 0.5**0.5, 1) / d**0.5, x.dtype)[None, None, None]
    return jnp.concatenate([jnp.ones_like(x[..., :1]), x / d**0.25, x[..., i] * x[..., j] * weight], axis=-1)


class BasedTaylor(RecurrenceMixer):
    """Simple linear attention language models balance the recall-throughput tradeoff (arXiv:2402.18668).

    Queries and keys have `feature_size` channels, values H. The polynomial is at least ½, so its sum needs
    no ε. The paper's other half, a window of 64 tokens, is `sliding_window`: based_taylor+sliding_window.
    """

    name = "based_taylor"
    paper = "arXiv:2402.18668"
    small = {"feature_size": 4}

    def __init__(self, geometry: Geometry, *, feature_size: int = 16, rngs: nnx.Rngs):
        if feature_size < 1 or (geometry.rotary is not None and feature_size % 2):
            raise BadInput(
                f"based_taylor feature_size={feature_size} must be at least 1, and even where positions are "
                f"rotary; the paper has 16."
            )
        self.key_size = feature_size
        super().__init__(geometry, rngs=rngs)

    def definition(self, q, k, v):
        """Section 4.1: Σ_s exp̂(q_tᵀk_s/√d) v_s / Σ_s exp̂(q_tᵀk_s/√d), exp̂(s) = 1 + s + s²/2."""
        s = q @ k.T / q.shape[1] ** 0.5
        A = 1 + s + s**2 / 2
        if self.geometry.causal:
            A = jnp.tril(A)
        return A @ v / A.sum(axis=1, keepdims=True)

    def recurrence(self, streams):
        heads = self.geometry.heads
        accurate = jnp.promote_types(jnp.float32, streams["q"].dtype)
        q, k = (repeat_heads(taylor(streams[name].astype(accurate)), heads) for name in ("q", "k"))
        return Recurrence(q=q, k=k, v=repeat_heads(streams["v"], heads), normalizer="sum")
