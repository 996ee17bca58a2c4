"""DPFP: linear attention with products of rectified channels, a feature map without parameters."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx

from transformer_jax.attention.contract import Geometry
from transformer_jax.attention.core import repeat_heads
from transformer_jax.attention.engines.forms import Recurrence
from transformer_jax.attention.engines.recurrence_mixer import RecurrenceMixer
from transformer_jax.errors import BadInput


class DPFP(RecurrenceMixer):
    """Linear transformers are secretly fast weight programmers (arXiv:2102.11174), sum update.

    Deterministic parameter-free projection to 2Hν features. With the paper's other proposal, the delta rule,
    the sum becomes `delta_net`. A query that no key answers (all its products are 0) reads 0, where the
    authors' code adds an ε to the normalizer.
    """

    name = "dpfp"
    paper = "arXiv:2102.11174"
    small = {"nu": 2}

    def __init__(self, geometry: Geometry, *, nu: int = 1, rngs: nnx.Rngs):
        if not 1 <= nu < 2 * geometry.head_size:
            raise BadInput(
                f"dpfp nu={nu} pairs each of 2H channels with its next nu: choose 1 to "
                f"{2 * geometry.head_size - 1}."
            )
        super().__init__(geometry, rngs=rngs)
        self.nu = nu

    def phi(self, x: jax.Array) -> jax.Array:
        """Section 5.3: φ_{i + 2H(j−1)}(x) = r_i r_{i+j}, r = ReLU([x, −x]), j = 1 … ν, indices cyclic.
        (The authors' code pairs i with i − j: the same products, in another order.)"""
        r = jax.nn.relu(jnp.concatenate([x, -x], axis=-1))
        return jnp.concatenate([r * jnp.roll(r, -j, axis=-1) for j in range(1, self.nu + 1)], axis=-1)

    def definition(self, q, k, v):
        """Section 3.2: y_t = Σ_s v_s φ(k_s)ᵀφ(q_t) / Σ_s φ(k_s)ᵀφ(q_t), over s ≤ t if causal."""
        A = self.phi(q) @ self.phi(k).T
        if self.geometry.causal:
            A = jnp.tril(A)
        z = A.sum(axis=1, keepdims=True)
        return A @ v / jnp.where(z > 0, z, 1)

    def recurrence(self, streams):
        heads = self.geometry.heads
        q, k = (repeat_heads(self.phi(streams[name]), heads) for name in ("q", "k"))
        return Recurrence(q=q, k=k, v=repeat_heads(streams["v"], heads), normalizer="sum")
