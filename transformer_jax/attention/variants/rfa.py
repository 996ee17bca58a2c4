"""Random feature attention: linear attention on sines and cosines of queries and keys of unit length."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx

from transformer_jax.attention.contract import Geometry
from transformer_jax.attention.core import repeat_heads
from transformer_jax.attention.engines.forms import Recurrence
from transformer_jax.attention.gates import unit
from transformer_jax.attention.variants.performer import Draws, RandomFeatures, gaussian


class Rfa(RandomFeatures):
    """Random feature attention (arXiv:2103.02143), the form without a gate.

    q and k have unit length, so that the softmax of σ²qᵀk is the Gaussian kernel up to a constant, which
    cancels. Each key-value head has its own draws and, as the paper's reparameterization, learns a σ per
    channel that multiplies them, 1 at the start; nothing is divided by √H. An estimate may be negative, but
    two unit vectors are never far apart: at σ = 1 its mean is e⁻² at least, and the sum over keys rarely
    comes near 0. Where it does the row is large: the authors' code clips the normalizer, by a constant that
    goes with its own scale of φ (and adds 1e-3 to the lengths); the paper's equation, followed here, does
    not. Features are drawn anew after every training step (`redraw_every`), as in the paper. With the paper's
    gate it is `rfa_gated`.
    """

    name = "rfa"
    paper = "arXiv:2103.02143"
    small = {"features": 32}

    def __init__(
        self,
        geometry: Geometry,
        *,
        features: int = 64,
        draws: Draws = "independent",
        redraw_every: int | None = 1,
        rngs: nnx.Rngs,
    ):
        super().__init__(geometry, features=features, draws=draws, redraw_every=redraw_every, rngs=rngs)
        self.sigma = nnx.Param(jnp.ones((geometry.kv_heads, geometry.head_size)))

    def drawn(self, key):
        one_head = lambda key: gaussian(key, self.features, self.geometry.head_size, self.draws)
        return jax.vmap(one_head)(jax.random.split(key, self.geometry.kv_heads))

    def weights(self):
        """w_i = σ ∘ w̃_i of each head: (N, D, H)."""
        w = self.sigma[...][:, None] * self.projections[...]
        return {"w": jnp.repeat(w, self.geometry.heads // self.geometry.kv_heads, axis=0)}

    def definition(self, q, k, v, w):
        """Theorem 1 and section 3.1: φ(x) = √(1/D) [sin(w₁ᵀx), …, cos(w_Dᵀx)] and
        Σ_s φ(q_t)ᵀφ(k_s) v_s / Σ_s φ(q_t)ᵀφ(k_s), over s ≤ t if causal."""
        A = phi(q, w) @ phi(k, w).T
        if self.geometry.causal:
            A = jnp.tril(A)
        return A @ v / A.sum(axis=1, keepdims=True)

    def streams(self, x, layout, state=None, context=None):
        streams, moved = super().streams(x, layout, state, context)
        return streams | {"q": unit(streams["q"]), "k": unit(streams["k"])}, moved

    def recurrence(self, streams):
        heads, kv_heads = self.geometry.heads, self.geometry.kv_heads
        w = self.weights()["w"]
        by_head = jax.vmap(phi, (2, 0), 2)
        q, k = by_head(streams["q"], w), by_head(streams["k"], w[:: heads // kv_heads])
        return Recurrence(
            q=q, k=repeat_heads(k, heads), v=repeat_heads(streams["v"], heads), normalizer="sum"
        )


def phi(x: jax.Array, w: jax.Array) -> jax.Array:
    """The features of x (…, H) under w (D, H): (…, 2D)."""
    x = x.astype(jnp.promote_types(jnp.float32, x.dtype))
    angles = x @ w.T.astype(x.dtype)
    return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1) / w.shape[0] ** 0.5
