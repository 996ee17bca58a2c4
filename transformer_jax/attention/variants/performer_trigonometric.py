"""Performer's other estimate of softmax attention: sines and cosines, unbiased but of either sign."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from transformer_jax.attention.core import repeat_heads
from transformer_jax.attention.engines.forms import Recurrence
from transformer_jax.attention.variants.performer import Performer


class PerformerTrigonometric(Performer):
    """The trigonometric features of arXiv:2009.14794, section 2.3, which the paper warns of.

    The estimate of e^{qᵀk/√H} is unbiased, and negative at times, the more often the smaller it is. So the
    normalizer, a sum of such estimates, may come near to 0 or fall below it, where a row is as large as its
    normalizer is small; nothing is clipped. Large inputs stay finite but mean little: one key, the
    longest, has all the weight, and its estimate is a mean of cosines of large angles. `features` counts the
    draws, each a sine and a cosine; `performer` is the form to use. The error budget is that of the division:
    a float32 sum that cancels to a thousandth of its terms has lost three digits. With the largest output row
    819 times the median one, the error measured 0.6e-3 to 3.0e-3 by how a compiler ordered the sums.
    """

    name = "performer_trigonometric"
    small = {"features": 64}
    tolerance = {"float32": 4e-3, "bfloat16": 3e-2}

    def angles(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        """√m φ(x) without its factor h(x) = e^{|x'|²/2}, (…, H) → (…, 2m), and log h(x) (…,)."""
        x = self.scaled(x)
        u = self.directions(x)
        return jnp.concatenate([jnp.sin(u), jnp.cos(u)], axis=-1), jnp.sum(x * x, axis=-1) / 2

    def definition(self, q, k, v):
        """φ(x) = h(x)/√m (sin ω₁ᵀx', …, cos ω_mᵀx'), equation 5 with f₁ = sin and f₂ = cos, and
        D̂⁻¹ φ(Q) φ(K)ᵀ V, equation 4."""

        def phi(x):
            waves, log_h = self.angles(x)
            return jnp.exp(log_h)[:, None] * waves / self.features**0.5

        A = phi(q) @ phi(k).T
        if self.geometry.causal:
            A = jnp.tril(A)
        return A @ v / A.sum(axis=1, keepdims=True)

    def recurrence(self, streams):
        """h of a query cancels; that of a key is left to the engine's stabilizer."""
        heads = self.geometry.heads
        (q, _), (k, log_h) = self.angles(streams["q"]), self.angles(streams["k"])
        return Recurrence(
            q=q,
            k=repeat_heads(k, heads),
            v=repeat_heads(streams["v"], heads).astype(q.dtype),
            log_gain=repeat_heads(log_h, heads),
            normalizer="sum",
        )
