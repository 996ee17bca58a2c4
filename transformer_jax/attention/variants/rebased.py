"""ReBased: linear attention with a quadratic kernel of normalized, scaled and shifted queries and keys."""

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


def squares(x: jax.Array) -> jax.Array:
    """φ with φ(q)ᵀφ(k) = (qᵀk)²/d, for x (B, T, N, d): the products x_i x_j, those with i < j times √2."""
    d = x.shape[-1]
    i, j = np.triu_indices(d)
    weight = jnp.asarray(np.where(i == j, 1, 2**0.5) / d**0.5, x.dtype)[None, None, None]
    return x[..., i] * x[..., j] * weight


class ReBased(RecurrenceMixer):
    """Linear transformers with learnable kernel functions (arXiv:2402.10644).

    The paper writes φ(x) = (γ · norm(x) + β)² (section 4 and figure 3); the square is that of the product
    qᵀk, as in the authors' code, whose layer norm with scale γ and shift β is over all heads of q, and
    another over all of k (flash-linear-attention norms each head, q and k alike). Queries and keys have
    `feature_size` channels, values H. A scale of q and k would cancel against the normalizer, the sum of the
    weights. A query that no key answers reads 0, where the authors' code adds an ε to the normalizer.
    Position is left to the model's convolutions: a rotary embedding is not applied.
    """

    name = "rebased"
    paper = "arXiv:2402.10644"
    small = {"feature_size": 4}

    def __init__(self, geometry: Geometry, *, feature_size: int = 16, rngs: nnx.Rngs):
        if feature_size < 1:
            raise BadInput(f"rebased feature_size={feature_size} must be at least 1; the paper has 16.")
        self.key_size = feature_size
        super().__init__(geometry, rngs=rngs)
        dtype = jnp.dtype(geometry.dtype)
        self.query_norm, self.key_norm = (
            nnx.LayerNorm(layer.out_features, epsilon=1e-5, dtype=dtype, rngs=rngs)
            for layer in (self.query, self.key)
        )

    def definition(self, q, k, v):
        """Σ_s (q_tᵀk_s)² v_s / Σ_s (q_tᵀk_s)², over s ≤ t if causal: linear attention (section 3.1) with the
        kernel of section 4, of q and k normalized, scaled and shifted."""
        A = (q @ k.T) ** 2
        if self.geometry.causal:
            A = jnp.tril(A)
        z = A.sum(axis=1, keepdims=True)
        return A @ v / jnp.where(z > 0, z, 1)

    def streams(self, x, layout, state=None, context=None):
        source = x if context is None else context
        q, k = self.query_norm(self.query(x)), self.key_norm(self.key(source))
        return {
            "q": q.reshape(*x.shape[:2], -1, self.key_size),
            "k": k.reshape(*source.shape[:2], -1, self.key_size),
            "v": self.value(source).reshape(*source.shape[:2], -1, self.geometry.head_size),
        }, {}

    def recurrence(self, streams):
        heads = self.geometry.heads
        accurate = jnp.promote_types(jnp.float32, streams["q"].dtype)
        q, k = (repeat_heads(squares(streams[name].astype(accurate)), heads) for name in ("q", "k"))
        return Recurrence(q=q, k=k, v=repeat_heads(streams["v"], heads), normalizer="sum")
