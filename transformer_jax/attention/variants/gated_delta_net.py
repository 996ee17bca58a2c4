"""Gated DeltaNet: a memory that replaces what a key held before, and fades as the input decides."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx

from transformer_jax.attention.contract import Capability, Geometry
from transformer_jax.attention.core import linear_flops, repeat_heads
from transformer_jax.attention.engines.convolved_mixer import ConvolvedMixer
from transformer_jax.attention.engines.forms import Recurrence
from transformer_jax.attention.gates import log_rate, time_step_bias, unit


class GatedDeltaNet(ConvolvedMixer):
    """Gated delta networks (arXiv:2412.06464).

    α and β are those of each query head; the state decays before the error of the delta rule is taken,
    as equation 10 has it. q and k have unit length and nothing is divided by √H (the authors' code
    divides; the norm after it undoes that). Values have H channels, the paper's usually 2H. Position is
    in the decay and the convolutions: a model's rotary embedding is not applied.
    """

    name = "gated_delta_net"
    paper = "arXiv:2412.06464"
    capability = Capability(
        refused={"cross": "its state is written and erased in the order of one sequence."},
        notes={"bidirectional": "forward plus reversed; the short convolutions stay causal"},
    )

    def __init__(self, geometry: Geometry, *, taps: int = 4, rngs: nnx.Rngs):
        super().__init__(geometry, taps=taps, rngs=rngs)
        g = geometry
        self.decay_rate, self.write_rate = (self.linear(g.width, g.heads, rngs) for _ in range(2))
        self.gate = self.linear(g.width, g.heads * g.head_size, rngs)
        self.norm = nnx.RMSNorm(g.head_size, dtype=jnp.dtype(g.dtype), rngs=rngs)
        self.dt_bias = nnx.Param(time_step_bias(rngs.params(), g.heads))
        self.A_log = nnx.Param(log_rate(rngs.params(), g.heads))

    def definition(self, q, k, v, log_decay, beta):
        """Equation 10: S_t = S_{t−1} (α_t (I − β_t k_t k_tᵀ)) + β_t v_t k_tᵀ, o_t = S_t q_t."""

        def step(S, x):
            q, k, v, log_alpha, beta = x
            erase = jnp.exp(log_alpha) * (jnp.eye(k.size, dtype=k.dtype) - beta * jnp.outer(k, k))
            S = S @ erase + beta * jnp.outer(v, k)
            return S, S @ q

        def scan(reverse):
            empty = jnp.zeros((v.shape[1], k.shape[1]), q.dtype)
            return jax.lax.scan(step, empty, (q, k, v, log_decay, beta), reverse=reverse)[1]

        return scan(False) if self.geometry.causal else scan(False) + scan(True)

    def streams(self, x, layout, state=None, context=None):
        streams, moved = self.convolved(x, layout, state)
        q, k, v = (streams[s].reshape(*x.shape[:2], -1, self.geometry.head_size) for s in "qkv")
        accurate = jnp.promote_types(jnp.float32, x.dtype)
        dt = jax.nn.softplus(self.decay_rate(x).astype(accurate) + self.dt_bias[...][None, None])
        return {
            "q": unit(q),
            "k": unit(k),
            "v": v,
            "log_decay": -jnp.exp(self.A_log[...].astype(accurate))[None, None] * dt,
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
            a=-beta * jnp.exp(log_decay),
            b=k,
        )

    def finish(self, o, x):
        """Section 3.4: each head is normalized, then gated."""
        o = self.norm(o).reshape(*o.shape[:2], -1)
        return self.out((o * jax.nn.silu(self.gate(x))).astype(x.dtype))

    def projection_flops(self, batch, length):
        gates = linear_flops(batch * length, self.decay_rate, self.write_rate, self.gate)
        return super().projection_flops(batch, length) + gates
