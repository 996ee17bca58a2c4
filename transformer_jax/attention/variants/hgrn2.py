"""HGRN2: a gated linear recurrence whose state is expanded by an outer product, its key tied to its decay."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx

from transformer_jax.attention.contract import Capability, Geometry
from transformer_jax.attention.core import repeat_heads
from transformer_jax.attention.engines.forms import Recurrence
from transformer_jax.attention.engines.recurrence_mixer import RecurrenceMixer
from transformer_jax.errors import BadInput


class HGRN2(RecurrenceMixer):
    """Gated linear RNNs with state expansion (arXiv:2404.07904).

    The key is what the decay leaves, 1 − f, and there is no normalizer and no scale. In the paper a lower
    bound on f is learned, 0 at the first layer and rising from layer to layer; a mixer does not know its
    layer, so `lower_bound` is a fixed number, and f is between it and 1. The query (the output gate of the
    earlier HGRN) passes through SiLU, the input i through nothing, and the RMS norm is over all heads, as in
    flash-linear-attention, which the authors point to; their own hgru2-pytorch has a sigmoid on the query,
    SiLU on i and a layer norm. Position is in the decay: a model's rotary embedding is not applied.
    """

    name = "hgrn2"
    paper = "arXiv:2404.07904"
    small = {"lower_bound": 0.25}
    capability = Capability(
        refused={"cross": "its decay needs queries and keys on one time line."},
        notes={"bidirectional": "forward plus reversed, each of which sees the token itself"},
    )

    def __init__(self, geometry: Geometry, *, lower_bound: float = 0.0, rngs: nnx.Rngs):
        if not 0 <= lower_bound < 1:
            raise BadInput(
                f"hgrn2 lower_bound={lower_bound} bounds a decay between 0 and 1: give at least 0 and less "
                f"than 1, where nothing would be written."
            )
        super().__init__(geometry, rngs=rngs)
        self.lower_bound = lower_bound
        size = geometry.heads * geometry.head_size
        self.norm = nnx.RMSNorm(size, dtype=jnp.dtype(geometry.dtype), rngs=rngs)

    def definition(self, q, k, v, log_decay):
        """Section 3: h_t = Diag(f_t) h_{t−1} + (1 − f_t) ⊗ i_t, y_t = h_tᵀ o_t; k = 1 − f, v = i, q = o."""

        def step(h, x):
            o, k, i, log_f = x
            h = jnp.exp(log_f)[:, None] * h + jnp.outer(k, i)
            return h, o @ h

        def scan(reverse):
            empty = jnp.zeros((k.shape[1], v.shape[1]), q.dtype)
            return jax.lax.scan(step, empty, (q, k, v, log_decay), reverse=reverse)[1]

        return scan(False) if self.geometry.causal else scan(False) + scan(True)

    def streams(self, x, layout, state=None, context=None):
        q, f, i = jax.nn.silu(self.query(x)), self.key(x), self.value(x)
        q, f, i = (y.reshape(*x.shape[:2], -1, self.geometry.head_size) for y in (q, f, i))
        f = f.astype(jnp.promote_types(jnp.float32, x.dtype))
        # 1 − f from the opposite sigmoid: near f = 1 the difference would round to nothing.
        k = (1 - self.lower_bound) * jax.nn.sigmoid(-f)
        if self.lower_bound == 0:
            log_decay = jax.nn.log_sigmoid(f)
        else:
            log_decay = jnp.log1p(-k)
        return {"q": q, "k": k, "v": i, "log_decay": log_decay}, {}

    def recurrence(self, streams):
        heads = self.geometry.heads
        q, k, v, log_decay = (repeat_heads(streams[s], heads) for s in ("q", "k", "v", "log_decay"))
        return Recurrence(q=q, k=k, v=v, log_decay=log_decay)

    def finish(self, o, x):
        return self.out(self.norm(o.reshape(*o.shape[:2], -1)).astype(x.dtype))
