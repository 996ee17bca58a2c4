"""mLSTM: a matrix memory with an exponential input gate, a forget gate and a bounded normalizer."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx

from transformer_jax.attention.contract import Capability, Geometry
from transformer_jax.attention.core import linear_flops, repeat_heads
from transformer_jax.attention.engines.forms import Recurrence
from transformer_jax.attention.engines.recurrence_mixer import RecurrenceMixer


class MLSTM(RecurrenceMixer):
    """xLSTM: extended long short-term memory (arXiv:2405.04517), its matrix cell.

    The forget gate is the sigmoid, of the paper's two choices. The gates are those of each query head, the
    output gate that of each channel. Each head is normalized before the output gate, as in xLSTM 7B
    (arXiv:2503.13427); neither its soft cap on gates nor the earlier block's up-projection is here. Position
    is in the decay: a model's rotary embedding is not applied.
    """

    name = "mlstm"
    paper = "arXiv:2405.04517"
    capability = Capability(
        refused={"cross": "its decay needs queries and keys on one time line."},
        notes={
            "bidirectional": "forward plus reversed, each normalized, each of which sees the token itself"
        },
    )

    def __init__(self, geometry: Geometry, *, rngs: nnx.Rngs):
        super().__init__(geometry, rngs=rngs)
        g = geometry
        dtype = jnp.dtype(g.dtype)
        # As in the authors' code: gates start as biases, the forget gates between σ(3) and σ(6).
        zeros = nnx.initializers.zeros_init()
        self.input_gate = nnx.Linear(
            g.width,
            g.heads,
            kernel_init=zeros,
            bias_init=nnx.initializers.normal(0.1),
            dtype=dtype,
            rngs=rngs,
        )
        self.forget_gate = nnx.Linear(
            g.width,
            g.heads,
            kernel_init=zeros,
            bias_init=lambda key, shape, dtype=None: jnp.linspace(3.0, 6.0, *shape),
            dtype=dtype,
            rngs=rngs,
        )
        self.gate = self.linear(g.width, g.heads * g.head_size, rngs)
        self.norm = nnx.LayerNorm(g.head_size, use_scale=False, use_bias=False, dtype=dtype, rngs=rngs)
        self.norm_scale = nnx.Param(jnp.ones((g.heads, g.head_size)))

    def definition(self, q, k, v, log_gain, log_decay):
        """Equations 19–27: C_t = f_t C_{t−1} + i_t v_t k_tᵀ, n_t = f_t n_{t−1} + i_t k_t,
        h̃_t = C_t q_t / max(|n_tᵀ q_t|, 1), i_t = exp(ĩ_t), f_t = σ(f̃_t), keys divided by √H."""

        def step(memory, x):
            C, n = memory
            q, k, v, log_i, log_f = x
            C = jnp.exp(log_f) * C + jnp.exp(log_i) * jnp.outer(v, k)
            n = jnp.exp(log_f) * n + jnp.exp(log_i) * k
            return (C, n), C @ q / jnp.maximum(jnp.abs(n @ q), 1)

        def scan(reverse):
            empty = jnp.zeros((v.shape[1], k.shape[1]), q.dtype), jnp.zeros(k.shape[1], q.dtype)
            inputs = (q, k / k.shape[1] ** 0.5, v, log_gain, log_decay)
            return jax.lax.scan(step, empty, inputs, reverse=reverse)[1]

        return scan(False) if self.geometry.causal else scan(False) + scan(True)

    def streams(self, x, layout, state=None, context=None):
        q, k, v = (project(x) for project in (self.query, self.key, self.value))
        q, k, v = (y.reshape(*x.shape[:2], -1, self.geometry.head_size) for y in (q, k, v))
        accurate = jnp.promote_types(jnp.float32, x.dtype)
        log_decay = jax.nn.log_sigmoid(self.forget_gate(x).astype(accurate))
        log_gain = self.input_gate(x).astype(accurate)
        return {"q": q, "k": k, "v": v, "log_gain": log_gain, "log_decay": log_decay}, {}

    def recurrence(self, streams):
        heads, accurate = self.geometry.heads, streams["log_gain"].dtype
        # Divided in float32: terms of the normalizer cancel, which would magnify the rounding of k.
        k = repeat_heads(streams["k"].astype(accurate), heads) / self.geometry.head_size**0.5
        v = repeat_heads(streams["v"], heads)
        return Recurrence(**(streams | {"k": k, "v": v}), normalizer="bounded")

    def finish(self, o, x):
        """Equations 21 and 27: h_t = σ(W_o x_t) ⊙ h̃_t, with the norm of each head between."""
        o = self.norm(o) * self.norm_scale[...].astype(o.dtype)[None, None]
        o = o.reshape(*o.shape[:2], -1)
        return self.out((o * jax.nn.sigmoid(self.gate(x))).astype(x.dtype))

    def projection_flops(self, batch, length):
        gates = linear_flops(batch * length, self.input_gate, self.forget_gate, self.gate)
        return super().projection_flops(batch, length) + gates
