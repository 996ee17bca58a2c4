"""GRU: a recurrent network that moves its hidden state towards a candidate, as a gate decides."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx

from transformer_jax.attention.contract import Geometry
from transformer_jax.attention.engines.serial import SerialMixer


class GRU(SerialMixer):
    """The gated recurrent unit (arXiv:1406.1078), in the form that cuDNN and PyTorch have.

    The reset gate acts on R_n h_{t−1} + b', after the product and with a bias of its own; the paper's
    equation 8 resets h_{t−1} before it (in its first version after, says the documentation of Keras). z keeps
    the past, as in the paper's equation 7; some texts turn it round. R is over the whole width N·H, whatever
    the number of heads. An output projection follows, as in every mechanism here.
    """

    name = "gru"
    paper = "arXiv:1406.1078"
    gates = "rzn"

    def __init__(self, geometry: Geometry, *, rngs: nnx.Rngs):
        super().__init__(geometry, rngs=rngs)
        self.recurrent_bias = nnx.Param(jnp.zeros((self.mixed_heads, self.size)))

    @property
    def mixed_heads(self):
        return 1

    def definition(self, r, z, n, R, bias):
        """Equations 5 to 8: h_t = z_t ⊙ h_{t−1} + (1 − z_t) ⊙ tanh(W_n x_t + b_n + r_t ⊙ (R_n h_{t−1} + b')),
        r_t and z_t being σ(W x_t + b + R h_{t−1}); the streams are W x_t + b."""

        def step(h, x):
            r, z, n = x
            R_r, R_z, R_n = R
            r, z = jax.nn.sigmoid(r + R_r @ h), jax.nn.sigmoid(z + R_z @ h)
            h = z * h + (1 - z) * jnp.tanh(n + r * (R_n @ h + bias))
            return h, h

        return jax.lax.scan(step, jnp.zeros(r.shape[1], r.dtype), (r, z, n))[1]

    def weights(self):
        return super().weights() | {"bias": self.recurrent_bias[...].astype(self.exact)}

    def cell(self, memory, x, y, weights):
        r, z = (jax.nn.sigmoid(x[gate] + y[gate]) for gate in "rz")
        candidate = jnp.tanh(x["n"] + r * (y["n"] + weights["bias"][None]))
        h = z * memory["h"] + (1 - z) * candidate
        return {"h": h}, h
