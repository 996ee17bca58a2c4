"""Gated linear attention: a running sum each of whose key channels fades as the input decides."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx

from transformer_jax.attention.contract import Capability, Geometry
from transformer_jax.attention.core import linear_flops, repeat_heads
from transformer_jax.attention.engines.forms import Recurrence
from transformer_jax.attention.engines.recurrence_mixer import RecurrenceMixer
from transformer_jax.errors import BadInput


class GatedLinearAttention(RecurrenceMixer):
    """GLA (arXiv:2312.06635).

    α is that of each key channel. Nothing is divided by √H, as in the paper; the norm after it would undo
    that. Keys have H channels, the paper's half of the values'. Position is in the decay: a model's rotary
    embedding is not applied.
    """

    name = "gated_linear_attention"
    paper = "arXiv:2312.06635"
    small = {"rank": 3}
    capability = Capability(
        refused={"cross": "its decay needs queries and keys on one time line."},
        notes={"bidirectional": "forward plus reversed, each of which sees the token itself"},
    )

    def __init__(self, geometry: Geometry, *, rank: int = 16, temperature: float = 16.0, rngs: nnx.Rngs):
        if rank < 1 or temperature <= 0:
            raise BadInput(
                f"gated_linear_attention rank={rank} and temperature={temperature} must be positive; the "
                f"paper has 16 and 16."
            )
        super().__init__(geometry, rngs=rngs)
        g = geometry
        self.temperature = temperature
        self.decay_down = self.linear(g.width, rank, rngs, axes="embed -")
        self.decay_up = self.linear(rank, g.kv_heads * g.head_size, rngs, axes="- heads", bias=True)
        self.gate = self.linear(g.width, g.heads * g.head_size, rngs, bias=True)
        self.norm = nnx.RMSNorm(g.head_size, dtype=jnp.dtype(g.dtype), rngs=rngs)

    def definition(self, q, k, v, log_decay):
        """Section 4.1: S_t = Diag(α_t) S_{t−1} + k_tᵀ v_t, o_t = q_t S_t."""

        def step(S, x):
            q, k, v, log_alpha = x
            S = jnp.exp(log_alpha)[:, None] * S + jnp.outer(k, v)
            return S, q @ S

        def scan(reverse):
            empty = jnp.zeros((k.shape[1], v.shape[1]), q.dtype)
            return jax.lax.scan(step, empty, (q, k, v, log_decay), reverse=reverse)[1]

        return scan(False) if self.geometry.causal else scan(False) + scan(True)

    def streams(self, x, layout, state=None, context=None):
        q, k, v = (project(x) for project in (self.query, self.key, self.value))
        q, k, v = (y.reshape(*x.shape[:2], -1, self.geometry.head_size) for y in (q, k, v))
        # Section 4.4: α = σ(x W¹ W² + b)^(1/τ), which starts near 1.
        logits = self.decay_up(self.decay_down(x)).astype(jnp.promote_types(jnp.float32, x.dtype))
        log_decay = jax.nn.log_sigmoid(logits).reshape(k.shape) / self.temperature
        return {"q": q, "k": k, "v": v, "log_decay": log_decay}, {}

    def recurrence(self, streams):
        heads = self.geometry.heads
        q, k, v, log_decay = (repeat_heads(streams[s], heads) for s in ("q", "k", "v", "log_decay"))
        return Recurrence(q=q, k=k, v=v, log_decay=log_decay)

    def finish(self, o, x):
        """Section 4.4: (Swish(x W_r + b_r) ⊙ LN(o)) W_O; the norm is that of the mean square, as in the
        authors' code."""
        o = self.norm(o).reshape(*o.shape[:2], -1)
        return self.out((jax.nn.silu(self.gate(x)) * o).astype(x.dtype))

    def projection_flops(self, batch, length):
        gates = linear_flops(batch * length, self.decay_down, self.decay_up, self.gate)
        return super().projection_flops(batch, length) + gates
