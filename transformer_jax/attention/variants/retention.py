"""Retention: linear attention whose memory of each head fades at its own rate."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from transformer_jax.attention.contract import Capability, Geometry
from transformer_jax.attention.core import repeat_heads
from transformer_jax.attention.engines.forms import Recurrence
from transformer_jax.attention.engines.recurrence_mixer import RecurrenceMixer
from transformer_jax.attention.rotary import rotate
from transformer_jax.errors import BadInput


class Retention(RecurrenceMixer):
    """Retentive network (arXiv:2307.08621), multi-scale retention.

    The rotation Θ is part of the mechanism: q and k are rotated once, whether or not the model rotates. The
    base is that of the model, or 10000; the authors' code has angles from 1 to 1/10000, both included, which
    is a base of 10000^(H/(H − 2)). Scores are divided by √H; the paper's two further normalizations are left
    out, since the group norm of each head (no learned scale, as in the authors' code) undoes them. It takes
    off the mean, as in the paper; the authors' code has come to use one that does not. Values have H
    channels, the paper's 2H.
    """

    name = "retention"
    paper = "arXiv:2307.08621"
    capability = Capability(
        refused={"cross": "the decay γ^(n−m) needs queries and keys on one time line."},
        notes={"bidirectional": "forward plus reversed, each of which sees the token itself"},
    )

    def __init__(self, geometry: Geometry, *, rngs: nnx.Rngs):
        if geometry.head_size % 2:
            raise BadInput(f"retention turns pairs of channels: head_size={geometry.head_size} must be even.")
        super().__init__(geometry, rngs=rngs)
        g = geometry
        self.gate = self.linear(g.width, g.heads * g.head_size, rngs)
        self.norm = nnx.LayerNorm(
            g.head_size, epsilon=1e-5, use_scale=False, use_bias=False, dtype=jnp.dtype(g.dtype), rngs=rngs
        )

    def definition(self, q, k, v, log_decay):
        """Equation 5: (Q Kᵀ/√H ⊙ D) V, D_nm = γ^(n−m) for n ≥ m; both directions: D + Dᵀ."""
        G = jnp.cumsum(log_decay)
        D = jnp.tril(jnp.exp(G[:, None] - G[None, :]))
        if not self.geometry.causal:
            # γ_n … γ_{m−1}: reversed, it is the query's token that decays what came before.
            D = D + jnp.triu(jnp.exp((G - log_decay)[None, :] - (G - log_decay)[:, None]))
        return ((q @ k.T) / q.shape[1] ** 0.5 * D) @ v

    def streams(self, x, layout, state=None, context=None):
        g = self.geometry
        q = self.query(x).reshape(*x.shape[:2], g.heads, g.head_size)
        k = self.key(x).reshape(*x.shape[:2], g.kv_heads, g.head_size)
        v = self.value(x).reshape(*x.shape[:2], g.kv_heads, g.head_size)
        base = g.rotary or 10_000.0
        # Equation 8: γ = 1 − 2^(−5−i) for head i.
        log_decay = np.log1p(-(2.0 ** (-5.0 - np.arange(g.heads))))
        log_decay = jnp.asarray(log_decay, jnp.promote_types(jnp.float32, x.dtype))
        return {
            "q": rotate(q, layout.positions, base),
            "k": rotate(k, layout.positions, base),
            "v": v,
            "log_decay": jnp.broadcast_to(log_decay[None, None], q.shape[:3]),
        }, {}

    def recurrence(self, streams):
        heads = self.geometry.heads
        return Recurrence(
            q=streams["q"] / self.geometry.head_size**0.5,
            k=repeat_heads(streams["k"], heads),
            v=repeat_heads(streams["v"], heads),
            log_decay=streams["log_decay"],
        )

    def finish(self, o, x):
        """Equation 8: (swish(X W_G) ⊙ GroupNorm_h(heads)) W_O."""
        o = self.norm(o).reshape(*o.shape[:2], -1)
        return self.out((jax.nn.silu(self.gate(x)) * o).astype(x.dtype))

    def projection_flops(self, batch, length):
        g = self.geometry
        return super().projection_flops(batch, length) + 2 * batch * length * g.width * g.heads * g.head_size
