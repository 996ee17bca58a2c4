"""Log-linear attention: Mamba-2 with a state for each scale of the past, read with a weight of its own."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from transformer_jax.attention.contract import Capability, Geometry
from transformer_jax.attention.core import linear_flops, repeat_heads
from transformer_jax.attention.engines import fenwick
from transformer_jax.attention.variants.mamba2 import Mamba2


class LogLinear(Mamba2):
    """Log-linear attention (arXiv:2506.04761) on Mamba-2; with λ = 1 it is `mamba2`.

    A Fenwick tree divides the tokens before t into at most log₂ t + 1 buckets, the nearest the smallest, each
    with a state of its own. λ_t^(ℓ) = softplus(L_ℓ · (W x_t)_ℓ) per head, as the authors' code has it, with L
    learned and 1 at the start; the number of levels is that of the model's `length`. The paper's other
    mechanism, on Gated DeltaNet, is left out.
    """

    name = "log_linear"
    paper = "arXiv:2506.04761"
    time = "T log T"
    state = "log T"
    capability = Capability(
        refused={
            "bidirectional": "its tree divides what came before a token; the paper has no other direction.",
            "cross": "its decay and its tree need queries and keys on one time line.",
        },
        sequence="gathered",
    )

    def __init__(self, geometry: Geometry, *, state_size: int = 128, taps: int = 4, rngs: nnx.Rngs):
        super().__init__(geometry, state_size=state_size, taps=taps, rngs=rngs)
        self.levels = fenwick.levels(geometry.length)
        self.level = self.linear(geometry.width, geometry.heads * self.levels, rngs)
        self.level_scale = nnx.Param(jnp.ones((geometry.heads, self.levels)))

    def definition(self, q, k, v, dt, log_decay, skip, weight):
        """Section 3: O = (Q Kᵀ ⊙ M^S ⊙ M^H) V, M^S_ts = α_t … α_{s+1}, M^H_ts = λ_t^(ℓ(t, s)), with V = Δ x,
        and Mamba-2's skip."""
        decay = jnp.cumsum(log_decay)
        earlier = np.tri(len(q), dtype=bool)
        M_S = jnp.exp(jnp.where(earlier, decay[:, None] - decay[None], -jnp.inf))
        M_H = jnp.take_along_axis(weight, buckets(len(q)), axis=1)
        return (q @ k.T * M_S * M_H) @ (dt[:, None] * v) + skip[:, None] * v

    def streams(self, x, layout, state=None, context=None):
        streams, moved = super().streams(x, layout, state, context)
        accurate = jnp.promote_types(jnp.float32, x.dtype)
        level = self.level(x).astype(accurate).reshape(*x.shape[:2], -1, self.levels)
        scale = self.level_scale[...].astype(accurate)[None, None]
        return streams | {"weight": jax.nn.softplus(scale * level)}, moved

    def core(self, streams, layout, state):
        q, k, v = (repeat_heads(streams[name], self.geometry.heads) for name in "qkv")
        o, moved = fenwick.mix(
            q,
            k,
            v * streams["dt"][..., None],
            log_decay=streams["log_decay"],
            weight=streams["weight"],
            layout=layout,
            state=state,
        )
        return o + streams["skip"][..., None] * v, moved

    def init_state(self, batch):
        g, exact = self.geometry, jnp.promote_types(jnp.float32, jnp.dtype(self.geometry.dtype))
        size = self.shared // g.kv_heads
        empty = fenwick.empty(batch, g.heads, self.levels, size, g.head_size, exact)
        return empty | {"inputs": self.convolution.init_state(batch)}

    def core_flops(self, batch, length):
        g = self.geometry
        size = self.shared // g.kv_heads
        return fenwick.flops(batch, length, g.heads, size, g.head_size)

    def projection_flops(self, batch, length):
        return super().projection_flops(batch, length) + linear_flops(batch * length, self.level)


def buckets(length: int) -> np.ndarray:
    """ℓ(t, s), (T, T), by going down from t: each bucket is as long as the lowest bit of where it ends."""
    level = np.zeros((length, length), np.int32)
    for t in range(length):
        b = t
        while b > 0:
            lowest = b & -b
            level[t, b - lowest : b] = lowest.bit_length()
            b -= lowest
    return level
