"""Differential attention: the difference of two softmaxes (arXiv:2410.05258)."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx

from transformer_jax.attention.variants.full import Full
from transformer_jax.errors import BadInput


class Differential(Full):
    """Differential Transformer (arXiv:2410.05258).

    A head of H channels has two queries and two keys of H/2, its d, and one value of H, its 2d: at the same
    heads it has as many parameters as full attention, where the paper halves the heads and doubles H. λ is
    one per layer. λ_init is an option: the paper's 0.8 − 0.6 exp(−0.3 (l − 1)) goes by the layer l, which a
    mixer does not know; the paper's ablation finds it robust to constants. Each head is normalized, with a
    learned scale that the heads share (some codes have none). Rotary positions turn the halves of q and of
    k each by itself.

    Both softmaxes run as query heads of one call, each with zeros in the half that is the other's: the
    keys are read, and cached, once, and the products are 4/3 of the least.
    """

    name = "differential"
    paper = "arXiv:2410.05258"

    def __init__(self, geometry, *, initial: float = 0.8, rngs: nnx.Rngs):
        if geometry.head_size % (2 if geometry.rotary is None else 4):
            raise BadInput(
                f"differential halves the channels of a head: head_size={geometry.head_size} must be even, "
                f"and with rotary positions a multiple of 4."
            )
        super().__init__(geometry, rngs=rngs)
        self.initial, self.half = initial, geometry.head_size // 2
        vector = lambda: nnx.Param(0.1 * jax.random.normal(rngs.params(), (self.half,)))
        self.lambda_q1, self.lambda_k1, self.lambda_q2, self.lambda_k2 = (vector() for _ in range(4))
        self.norm = nnx.RMSNorm(geometry.head_size, epsilon=1e-5, dtype=jnp.dtype(geometry.dtype), rngs=rngs)

    def definition(self, q, k, v, lambda_):
        """Equation 1: (softmax(Q₁ K₁ᵀ / √d) − λ softmax(Q₂ K₂ᵀ / √d)) V, before the norm of the head."""
        (q1, q2), (k1, k2) = jnp.split(q, 2, axis=1), jnp.split(k, 2, axis=1)
        i, j = jnp.arange(len(q))[:, None], jnp.arange(len(k))[None]
        seen = (j <= i) if self.geometry.causal else (j == j)
        softmax = lambda s: jax.nn.softmax(jnp.where(seen, s / jnp.sqrt(q1.shape[1]), -jnp.inf), axis=-1)
        return (softmax(q1 @ k1.T) - lambda_[:, None] * softmax(q2 @ k2.T)) @ v

    def streams(self, x, layout, state=None, context=None):
        """Equation 2: λ = exp(λ_q1 · λ_k1) − exp(λ_q2 · λ_k2) + λ_init."""
        streams, moved = super().streams(x, layout, state, context)
        exact = jnp.promote_types(jnp.float32, x.dtype)
        product = lambda a, b: jnp.sum(a[...].astype(exact) * b[...].astype(exact))
        first, second = product(self.lambda_q1, self.lambda_k1), product(self.lambda_q2, self.lambda_k2)
        lambda_ = jnp.exp(first) - jnp.exp(second) + self.initial
        return streams | {"lambda_": jnp.broadcast_to(lambda_, streams["q"].shape[:3])}, moved

    def placed(self, x, positions):
        halves = x.reshape(*x.shape[:2], -1, self.half)
        return super().placed(halves, positions).reshape(x.shape)

    @property
    def scale(self):
        return self.half**-0.5

    def core(self, streams, layout, state):
        q = streams["q"]
        first = (jnp.arange(q.shape[-1]) < self.half)[None, None, None]
        both = jnp.stack([jnp.where(first, q, 0), jnp.where(first, 0, q)], axis=3)
        o, moved = super().core(streams | {"q": both.reshape(*q.shape[:2], -1, q.shape[3])}, layout, state)
        o = o.reshape(*q.shape[:3], 2, -1)
        return o[..., 0, :] - streams["lambda_"][..., None] * o[..., 1, :], moved

    def finish(self, o, x):
        """Equation 3: (1 − λ_init) · norm(head), joined."""
        return super().finish((1 - self.initial) * self.norm(o), x)

    def core_flops(self, batch, length):
        return 2 * super().core_flops(batch, length)
