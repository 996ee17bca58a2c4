"""Kimi delta attention: the gated delta rule with a decay of each key channel."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx

from transformer_jax.attention.contract import Capability, Geometry
from transformer_jax.attention.core import linear_flops, repeat_heads
from transformer_jax.attention.engines.convolved_mixer import ConvolvedMixer
from transformer_jax.attention.engines.forms import Recurrence
from transformer_jax.attention.gates import log_rate, time_step_bias, unit


class KimiDelta(ConvolvedMixer):
    """Kimi Linear (arXiv:2510.26692).

    α, β and the gate are those of each query head; α and the gate come through a bottleneck of H channels.
    The state decays before the error of the delta rule is taken. The decay is that of Mamba-2,
    log α = −e^A softplus(· + bias), as in the authors' code. q and k have unit length and nothing is divided
    by √H (the authors' code divides; the norm after it undoes that).
    """

    name = "kimi_delta"
    paper = "arXiv:2510.26692"
    capability = Capability(
        refused={"cross": "its state is written and erased in the order of one sequence."},
        notes={"bidirectional": "forward plus reversed; the short convolutions stay causal"},
    )

    def __init__(self, geometry: Geometry, *, taps: int = 4, rngs: nnx.Rngs):
        super().__init__(geometry, taps=taps, rngs=rngs)
        g = geometry
        size = g.heads * g.head_size
        self.write_rate = self.linear(g.width, g.heads, rngs)
        self.decay_down, self.gate_down = (
            self.linear(g.width, g.head_size, rngs, axes="embed -") for _ in range(2)
        )
        self.decay_up, self.gate_up = (self.linear(g.head_size, size, rngs, axes="- heads") for _ in range(2))
        self.norm = nnx.RMSNorm(g.head_size, dtype=jnp.dtype(g.dtype), rngs=rngs)
        self.dt_bias = nnx.Param(time_step_bias(rngs.params(), size))
        self.A_log = nnx.Param(log_rate(rngs.params(), g.heads))

    def definition(self, q, k, v, log_decay, beta):
        """Equation 1: S_t = (I − β_t k_t k_tᵀ) Diag(α_t) S_{t−1} + β_t k_t v_tᵀ, o_t = S_tᵀ q_t."""

        def step(S, x):
            q, k, v, log_alpha, beta = x
            S = jnp.exp(log_alpha)[:, None] * S
            S = (jnp.eye(k.size, dtype=k.dtype) - beta * jnp.outer(k, k)) @ S + beta * jnp.outer(k, v)
            return S, q @ S

        def scan(reverse):
            empty = jnp.zeros((k.shape[1], v.shape[1]), q.dtype)
            return jax.lax.scan(step, empty, (q, k, v, log_decay, beta), reverse=reverse)[1]

        return scan(False) if self.geometry.causal else scan(False) + scan(True)

    def streams(self, x, layout, state=None, context=None):
        streams, moved = self.convolved(x, layout, state)
        q, k, v = (streams[s].reshape(*x.shape[:2], -1, self.geometry.head_size) for s in "qkv")
        accurate = jnp.promote_types(jnp.float32, x.dtype)
        dt = jax.nn.softplus(
            self.decay_up(self.decay_down(x)).astype(accurate) + self.dt_bias[...][None, None]
        )
        return {
            "q": unit(q),
            "k": unit(k),
            "v": v,
            "log_decay": -jnp.exp(self.A_log[...].astype(accurate))[None, None, :, None]
            * dt.reshape(q.shape),
            "beta": jax.nn.sigmoid(self.write_rate(x).astype(accurate)),
        }, moved

    def recurrence(self, streams):
        heads = self.geometry.heads
        k, v = repeat_heads(streams["k"], heads), repeat_heads(streams["v"], heads)
        log_decay, beta = streams["log_decay"], streams["beta"]
        return Recurrence(
            q=streams["q"],
            k=k,
            v=v * beta[..., None].astype(v.dtype),
            log_decay=log_decay,
            a=-beta,
            # The engine's b reads the state before it decays: kᵀ Diag(α) S = (α ⊙ k)ᵀ S.
            b=k * jnp.exp(log_decay),
        )

    def finish(self, o, x):
        """Each head is normalized, then gated with a sigmoid."""
        o = self.norm(o).reshape(*o.shape[:2], -1)
        return self.out((o * jax.nn.sigmoid(self.gate_up(self.gate_down(x)))).astype(x.dtype))

    def projection_flops(self, batch, length):
        layers = (self.write_rate, self.decay_down, self.decay_up, self.gate_down, self.gate_up)
        return super().projection_flops(batch, length) + linear_flops(batch * length, *layers)
