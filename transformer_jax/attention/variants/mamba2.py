"""Mamba-2: a state space whose transition is a scalar per head, chosen by the input."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx

from transformer_jax.attention.contract import Capability, Geometry, Mixer
from transformer_jax.attention.convolution import ShortConvolution
from transformer_jax.attention.core import linear_flops, repeat_heads
from transformer_jax.attention.engines.forms import Recurrence
from transformer_jax.attention.engines.recurrence_mixer import RecurrenceMixer
from transformer_jax.attention.gates import log_rate, time_step_bias
from transformer_jax.errors import BadInput


class Mamba2(RecurrenceMixer):
    """Transformers are SSMs (arXiv:2405.21060): the state space dual, as a recurrence.

    C is the query, B the key and x the value of each head; `kv_heads` is the number of groups that share B
    and C (the paper has 1), and N·H is the inner width (the paper's 2D). The convolution has no bias. The
    norm is over the whole inner width. Position is in the decay and the convolution: a model's rotary
    embedding is not applied.
    """

    name = "mamba2"
    paper = "arXiv:2405.21060"
    own_convolution = True
    small = {"state_size": 6}
    capability = Capability(
        refused={"cross": "its decay needs queries and keys on one time line."},
        notes={"bidirectional": "forward plus reversed, the skip once; the short convolution stays causal"},
    )

    def __init__(self, geometry: Geometry, *, state_size: int = 128, taps: int = 4, rngs: nnx.Rngs):
        if state_size < 1:
            raise BadInput(f"mamba2 state_size={state_size} must be at least 1; the authors' code has 128.")
        # Its projections are not those of other heads: B and C are shared, x is each head's own.
        Mixer.__init__(self, geometry)
        g = geometry
        inner, self.shared = g.heads * g.head_size, g.kv_heads * state_size
        # Three streams side by side: a cut would not meet their borders.
        self.inputs = self.linear(g.width, inner + 2 * self.shared, rngs, axes="embed -")
        self.convolution = ShortConvolution(inner + 2 * self.shared, taps, dtype=g.dtype, rngs=rngs)
        self.time_step = self.linear(g.width, g.heads, rngs)
        self.gate = self.linear(g.width, inner, rngs)
        self.norm = nnx.RMSNorm(inner, epsilon=1e-5, dtype=jnp.dtype(g.dtype), rngs=rngs)
        self.out = self.joining(inner, rngs)
        self.dt_bias = nnx.Param(time_step_bias(rngs.params(), g.heads))
        self.A_log = nnx.Param(log_rate(rngs.params(), g.heads))
        self.skip = nnx.Param(jnp.ones(g.heads))

    def definition(self, q, k, v, dt, log_decay, skip):
        """Equation 2, with Ā = e^(Δ A), B̄ = Δ B: h_t = Ā_t h_{t−1} + B̄_t x_tᵀ, y_t = C_tᵀ h_t + D x_t."""

        def step(h, x):
            C, B, x, dt, log_decay = x
            h = jnp.exp(log_decay) * h + dt * jnp.outer(B, x)
            return h, C @ h

        def scan(reverse):
            empty = jnp.zeros((k.shape[1], v.shape[1]), q.dtype)
            return jax.lax.scan(step, empty, (q, k, v, dt, log_decay), reverse=reverse)[1]

        y = scan(False) if self.geometry.causal else scan(False) + scan(True)
        return y + skip[:, None] * v

    def streams(self, x, layout, state=None, context=None):
        g = self.geometry
        part = None if state is None else state["inputs"]
        xBC, moved = self.convolution(self.inputs(x), layout, part)
        inner = g.heads * g.head_size
        v, k, q = jnp.split(jax.nn.silu(xBC), [inner, inner + self.shared], axis=-1)
        accurate = jnp.promote_types(jnp.float32, x.dtype)
        dt = jax.nn.softplus(self.time_step(x).astype(accurate) + self.dt_bias[...][None, None])
        return {
            "q": q.reshape(*x.shape[:2], g.kv_heads, -1),
            "k": k.reshape(*x.shape[:2], g.kv_heads, -1),
            "v": v.reshape(*x.shape[:2], g.heads, g.head_size),
            "dt": dt,
            "log_decay": -jnp.exp(self.A_log[...].astype(accurate))[None, None] * dt,
            "skip": jnp.broadcast_to(self.skip[...].astype(accurate)[None, None], dt.shape),
        }, {"inputs": moved}

    def recurrence(self, streams):
        heads, v = self.geometry.heads, streams["v"]
        q, k = repeat_heads(streams["q"], heads), repeat_heads(streams["k"], heads)
        return Recurrence(q=q, k=k, v=v * streams["dt"][..., None], log_decay=streams["log_decay"])

    def core(self, streams, layout, state):
        o, moved = super().core(streams, layout, state)
        return o + streams["skip"][..., None] * streams["v"], moved

    def finish(self, o, x):
        """Section 7.1: gated, then normalized."""
        o = o.reshape(*o.shape[:2], -1) * jax.nn.silu(self.gate(x))
        return self.out(self.norm(o).astype(x.dtype))

    def init_state(self, batch):
        return super().init_state(batch) | {"inputs": self.convolution.init_state(batch)}

    def projection_flops(self, batch, length):
        return linear_flops(batch * length, self.inputs, self.time_step, self.gate, self.out)
