"""sLSTM: a recurrent network with exponential gates, a normalizer and a recurrent block per head."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx

from transformer_jax.attention.contract import Geometry
from transformer_jax.attention.engines.serial import SerialMixer


class SLSTM(SerialMixer):
    """xLSTM: extended long short-term memory (arXiv:2405.04517), its scalar cell.

    R has a block per head, so that heads mix their own channels only; W is dense, as in section 2.2 (the
    authors' code has blocks there too). The forget gate is the sigmoid, of the paper's two choices. Each head
    is normalized, as in the block of the paper, whose optional short convolution and feed-forward part are
    left out; an output projection follows, as in every mechanism here. R starts at 0 and the bias of the
    forget gate falls from 5 to −7 over the channels of a head, as in the authors' code for a first block.
    """

    name = "slstm"
    paper = "arXiv:2405.04517"
    gates = "ifzo"
    memory = ("h", "c", "n")

    def __init__(self, geometry: Geometry, *, rngs: nnx.Rngs):
        g = geometry
        falling = 5 - 12 * jnp.linspace(0, 1, g.head_size) ** 0.3
        super().__init__(geometry, biases={"f": falling}, rngs=rngs)
        self.recurrent[...] = jnp.zeros_like(self.recurrent[...])
        self.norm = nnx.LayerNorm(
            g.head_size, use_scale=False, use_bias=False, dtype=jnp.dtype(g.dtype), rngs=rngs
        )
        self.norm_scale = nnx.Param(jnp.ones((g.heads, g.head_size)))

    def definition(self, i, f, z, o, R):
        """Equations 8–14: c_t = f_t c_{t−1} + i_t z_t, n_t = f_t n_{t−1} + i_t, h_t = o_t c_t / n_t, with
        i = exp(ĩ), f = σ(f̃), z = tanh(z̃), o = σ(õ), each of W x_t + b + R h_{t−1}; the streams are
        W x_t + b."""

        def step(memory, x):
            h, c, n = memory
            i, f, z, o = x + R @ h
            i, f, z, o = jnp.exp(i), jax.nn.sigmoid(f), jnp.tanh(z), jax.nn.sigmoid(o)
            c, n = f * c + i * z, f * n + i
            h = o * c / n
            return (h, c, n), h

        empty = jnp.zeros(i.shape[1], i.dtype)
        return jax.lax.scan(step, (empty, empty, empty), jnp.stack([i, f, z, o], 1))[1]

    def cell(self, memory, x, y, weights):
        """Equations 15–17: c and n are divided by e^m, m their largest logarithm; h has nothing of it."""
        log_i, f, z, o = (x[gate] + y[gate] for gate in self.gates)
        log_f = jax.nn.log_sigmoid(f)
        m = jax.lax.stop_gradient(jnp.maximum(log_f + memory["m"], log_i))
        kept, written = jnp.exp(log_f + memory["m"] - m), jnp.exp(log_i - m)
        c, n = kept * memory["c"] + written * jnp.tanh(z), kept * memory["n"] + written
        h = jax.nn.sigmoid(o) * c / n
        return {"h": h, "c": c, "n": n, "m": m}, h

    def empty(self, batch, heads):
        memory = super().empty(batch, heads)
        return memory | {"m": jnp.full_like(memory["n"], -jnp.inf)}

    def finish(self, o, x):
        return super().finish(self.norm(o) * self.norm_scale[...].astype(o.dtype)[None, None], x)
