"""Random feature attention with a gate: what was written fades as the input decides."""

from __future__ import annotations

from dataclasses import replace

import jax
import jax.numpy as jnp
from flax import nnx

from transformer_jax.attention.contract import Capability, Geometry
from transformer_jax.attention.core import linear_flops
from transformer_jax.attention.variants.performer import Draws
from transformer_jax.attention.variants.rfa import Rfa, phi


class RfaGated(Rfa):
    """Random feature attention (arXiv:2103.02143) with the gate of its section 3.2.

    One gate per query head, g = sigmoid(w_gᵀx + b_g); 1 − g goes through the engine's stabilizer, so that
    gates that are all but 1 divide no 0 by 0. The normalizer fades with the state. (The authors' code has no
    gate.)
    """

    name = "rfa_gated"
    capability = Capability(
        refused={
            "bidirectional": "its gate fades what came before; the paper gives the ungated form, rfa, for "
            "both directions.",
            "cross": "its gate needs queries and keys on one time line.",
        }
    )

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
        self.gate = self.linear(geometry.width, geometry.heads, rngs, bias=True)

    def definition(self, q, k, v, gate, w):
        """Section 3.2: S_t = g_t S_{t−1} + (1 − g_t) φ(k_t) ⊗ v_t, z_t = g_t z_{t−1} + (1 − g_t) φ(k_t),
        output φ(q_t)ᵀ S_t / φ(q_t)ᵀ z_t; `gate` has the logit of g_t."""

        def step(state, x):
            S, z = state
            q, k, v, g = x
            S = g * S + (1 - g) * jnp.outer(k, v)
            z = g * z + (1 - g) * k
            return (S, z), q @ S / (q @ z)

        empty = jnp.zeros((2 * len(w), v.shape[1]), v.dtype), jnp.zeros(2 * len(w), v.dtype)
        return jax.lax.scan(step, empty, (phi(q, w), phi(k, w), v, jax.nn.sigmoid(gate)))[1]

    def streams(self, x, layout, state=None, context=None):
        streams, moved = super().streams(x, layout, state, context)
        return streams | {"gate": self.gate(x).astype(jnp.promote_types(jnp.float32, x.dtype))}, moved

    def recurrence(self, streams):
        log_g, log_rest = jax.nn.log_sigmoid(streams["gate"]), jax.nn.log_sigmoid(-streams["gate"])
        return replace(super().recurrence(streams), log_decay=log_g, log_gain=log_rest)

    def projection_flops(self, batch, length):
        return super().projection_flops(batch, length) + linear_flops(batch * length, self.gate)
