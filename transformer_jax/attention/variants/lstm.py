"""LSTM: a recurrent network whose gates decide what its cell keeps, takes in and shows."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx

from transformer_jax.attention.contract import Geometry
from transformer_jax.attention.engines.serial import SerialMixer


class LSTM(SerialMixer):
    """Long short-term memory (Hochreiter & Schmidhuber 1997) with the forget gate of Gers et al. (2000).

    It is the form that libraries have, equations 7 to 11 of arXiv:1308.0850 without their peepholes: σ for
    the gates, tanh for input and output of the cell. R is over the whole width N·H, whatever the number of
    heads; `slstm` has blocks. The bias of the forget gate starts at 1. An output projection follows, as in
    every mechanism here.
    """

    name = "lstm"
    paper = "doi:10.1162/neco.1997.9.8.1735"
    gates = "ifgo"
    memory = ("h", "c")

    def __init__(self, geometry: Geometry, *, rngs: nnx.Rngs):
        super().__init__(geometry, biases={"f": 1.0}, rngs=rngs)

    @property
    def mixed_heads(self):
        return 1

    def definition(self, i, f, g, o, R):
        """c_t = σ(f_t) ⊙ c_{t−1} + σ(i_t) ⊙ tanh(g_t), h_t = σ(o_t) ⊙ tanh(c_t), of each gate
        W x_t + b + R h_{t−1}; the streams are W x_t + b (equations 7 to 11 of arXiv:1308.0850)."""

        def step(memory, x):
            h, c = memory
            i, f, g, o = x + R @ h
            c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
            h = jax.nn.sigmoid(o) * jnp.tanh(c)
            return (h, c), h

        empty = jnp.zeros(i.shape[1], i.dtype)
        return jax.lax.scan(step, (empty, empty), jnp.stack([i, f, g, o], 1))[1]

    def cell(self, memory, x, y, weights):
        i, f, g, o = (x[gate] + y[gate] for gate in self.gates)
        c = jax.nn.sigmoid(f) * memory["c"] + jax.nn.sigmoid(i) * jnp.tanh(g)
        h = jax.nn.sigmoid(o) * jnp.tanh(c)
        return {"h": h, "c": c}, h
