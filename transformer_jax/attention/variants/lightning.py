"""Lightning attention: a running sum that fades at one fixed rate per head, normalized afterwards."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from transformer_jax.attention.contract import Capability, Geometry
from transformer_jax.attention.core import linear_flops, repeat_heads
from transformer_jax.attention.engines.forms import Recurrence
from transformer_jax.attention.engines.recurrence_mixer import RecurrenceMixer
from transformer_jax.errors import BadInput


class Lightning(RecurrenceMixer):
    """Lightning Attention-2 (arXiv:2401.04658).

    The paper leaves λ, activations and gate to the model. Here they are those of MiniMax-01
    (arXiv:2501.08313): SiLU of q, k and v; λ_h = exp(−slope · 2^(−8h/N)) for head h = 1 … N; a norm over all
    heads, a sigmoid gate. The authors' models lower `slope` from layer to layer, 1 − l/(L − 1) for layer
    l = 0 … L − 1; a mixer does not know its layer. A model's rotary embedding is not applied.
    """

    name = "lightning"
    paper = "arXiv:2401.04658"
    capability = Capability(
        refused={"cross": "the decay λ^(t−s) needs queries and keys on one time line."},
        notes={"bidirectional": "forward plus reversed, each of which sees the token itself"},
    )

    def __init__(self, geometry: Geometry, *, slope: float = 1.0, rngs: nnx.Rngs):
        if slope < 0:
            raise BadInput(f"lightning slope={slope} lets the past grow: choose 0 (no decay) or more.")
        super().__init__(geometry, rngs=rngs)
        g = geometry
        self.slope = slope
        self.gate = self.linear(g.width, g.heads * g.head_size, rngs)
        self.norm = nnx.RMSNorm(g.heads * g.head_size, dtype=jnp.dtype(g.dtype), rngs=rngs)

    def definition(self, q, k, v, log_decay):
        """Section 3: (Q Kᵀ ⊙ M) V, M_ts = λ^(t−s) for t ≥ s, else 0; both directions: M + Mᵀ."""
        G = jnp.cumsum(log_decay)
        M = jnp.tril(jnp.exp(G[:, None] - G[None, :]))
        if not self.geometry.causal:
            # λ_t … λ_{s−1}, all equal: reversed, each token fades what lies behind it in that order.
            before = G - log_decay
            M = M + jnp.triu(jnp.exp(before[None, :] - before[:, None]))
        return ((q @ k.T) * M) @ v

    def streams(self, x, layout, state=None, context=None):
        g = self.geometry
        q, k, v = (jax.nn.silu(project(x)) for project in (self.query, self.key, self.value))
        rate = self.slope * 2.0 ** (-8.0 * np.arange(1, g.heads + 1) / g.heads)
        log_decay = jnp.asarray(-rate, jnp.promote_types(jnp.float32, x.dtype))
        return {
            "q": q.reshape(*x.shape[:2], g.heads, g.head_size),
            "k": k.reshape(*x.shape[:2], g.kv_heads, g.head_size),
            "v": v.reshape(*x.shape[:2], g.kv_heads, g.head_size),
            "log_decay": jnp.broadcast_to(log_decay[None, None], (*x.shape[:2], g.heads)),
        }, {}

    def recurrence(self, streams):
        heads = self.geometry.heads
        q, k, v, log_decay = (repeat_heads(streams[s], heads) for s in ("q", "k", "v", "log_decay"))
        return Recurrence(q=q, k=k, v=v, log_decay=log_decay)

    def finish(self, o, x):
        o = self.norm(o.reshape(*o.shape[:2], -1))
        return self.out((jax.nn.sigmoid(self.gate(x)) * o).astype(x.dtype))

    def projection_flops(self, batch, length):
        return super().projection_flops(batch, length) + linear_flops(batch * length, self.gate)
