"""Longformer: a window, and global tokens that see and are seen by all (arXiv:2004.05150)."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from transformer_jax.attention.contract import Capability
from transformer_jax.attention.core import linear_flops
from transformer_jax.attention.engines.softmax import merge
from transformer_jax.attention.engines.softmax_mixer import SoftmaxMixer
from transformer_jax.attention.engines.softmax_plan import Plan, band
from transformer_jax.errors import BadInput


class Longformer(SoftmaxMixer):
    """A token sees `window` / 2 tokens on each side, itself, and the first `global_tokens`, which see all.

    Global tokens see by projections of their own, Q_g, K_g and V_g, which start as copies of the others; they
    are seen as every token is. The paper puts them on tokens of the task (that of the class, those of a
    question); here they are the first of a row. Windows with gaps are `dilated`.

    The streams q_global (B, g, …) are those of the global tokens; v has the values of a token side by side,
    those that a window reads and those that global tokens read.
    """

    name = "longformer"
    paper = "arXiv:2004.05150"
    time = "T·(w + g)"
    state = "none"
    capability = Capability(
        refused={
            "causal": "its global tokens see the whole sequence, so everything that sees them would see the "
            "future; the paper's language models have windows alone.",
            "cross": "a window is around a token's own place, which a token of x lacks in a context.",
            "packing": "its global tokens are counted from the start of a row, not of a segment.",
            "decoding": "its global tokens see the whole sequence, so each new token changes all outputs.",
        }
    )
    small = {"window": 6, "global_tokens": 2}

    def __init__(self, geometry, *, window: int = 512, global_tokens: int = 1, rngs: nnx.Rngs):
        if window < 2 or window % 2 or global_tokens < 1:
            raise BadInput(
                f"longformer window={window} counts the tokens on both sides, and global_tokens="
                f"{global_tokens} those that see all: give an even number, and 1 or more."
            )
        super().__init__(geometry, rngs=rngs)
        self.window, self.global_tokens = window, global_tokens
        local = self.query, self.key, self.value
        self.query_global, self.key_global, self.value_global = map(nnx.clone, local)

    def definition(self, q, k, v, q_global, k_global):
        """softmax(Q Kᵀ / √d_k) V (equation 1): of Q_s, K_s, V_s over windows and global tokens, and for
        global tokens of Q_g, K_g, V_g over everything (section 3.1)."""
        v = v.reshape(len(q), 2, -1)
        i, j = jnp.arange(len(q))[:, None], jnp.arange(len(k))[None]
        seen = (jnp.abs(i - j) <= self.window // 2) | (j < self.global_tokens)
        scores = jnp.where(seen, q @ k.T / jnp.sqrt(q.shape[-1]), -jnp.inf)
        o = jax.nn.softmax(scores, axis=-1) @ v[:, 0]
        o_global = jax.nn.softmax(q_global @ k_global.T / jnp.sqrt(q.shape[-1]), axis=-1) @ v[:, 1]
        return jnp.concatenate([o_global, o[len(q_global) :]])

    def streams(self, x, layout, state=None, context=None):
        streams, _ = super().streams(x, layout)
        g, first = self.geometry, self.global_tokens
        in_heads = lambda x: x.reshape(*x.shape[:2], -1, g.head_size)
        q_global = self.placed(in_heads(self.query_global(x[:, :first])), layout.positions[:, :first])
        k_global = self.placed(in_heads(self.key_global(x)), layout.positions)
        both = jnp.stack([streams["v"], in_heads(self.value_global(x))], axis=2)
        v = both.reshape(x.shape[0], -1, *both.shape[3:])
        return {**streams, "v": v, "q_global": q_global, "k_global": k_global}, {}

    def sees(self, i, j):
        """The window without the global tokens, which a part of their own has."""
        return (jnp.abs(i - j) <= self.window // 2) & (j >= self.global_tokens)

    def plans(self, length: int) -> tuple[Plan, Plan, Plan]:
        """Of windows, of all tokens that see the global ones, and of the global ones that see all."""
        side, first = self.window // 2, min(self.global_tokens, length)
        return band(length, length, before=side, after=side), band(length, first), band(first, length)

    def among(self, streams, layout):
        q, q_global, v = streams["q"], streams["q_global"], streams["v"]
        v = v.reshape(v.shape[0], -1, 2, *v.shape[2:])
        first, everything = q_global.shape[1], lambda i, j: None
        window, to_global, from_global = self.plans(q.shape[1])
        some = {"q": q, "k": streams["k"], "v": v[:, :, 0]}
        near = super().among(some, layout, plan=window)
        far = super().among(some, layout, plan=to_global, sees=everything, places=np.arange(first))
        some = {"q": q_global, "k": streams["k_global"], "v": v[:, :, 1]}
        wide = super().among(some, layout, plan=from_global, sees=everything)
        o, lse = merge([near, far])
        is_global, number = np.arange(q.shape[1]) < first, np.minimum(np.arange(q.shape[1]), first - 1)
        # Chosen token by token: to join slices would move every token of a sequence that is cut over devices.
        return tuple(
            jnp.where(is_global.reshape(-1, *(1,) * (x.ndim - 2)), jnp.take(y, number, axis=1), x)
            for x, y in zip((o, lse), wide, strict=True)
        )

    def core_flops(self, batch, length):
        g, pairs = self.geometry, sum(plan.pairs for plan in self.plans(length))
        return 4 * batch * g.heads * g.head_size * pairs

    def projection_flops(self, batch, length):
        first = min(self.global_tokens, length)
        more = linear_flops(batch * length, self.key_global, self.value_global)
        return super().projection_flops(batch, length) + more + linear_flops(batch * first, self.query_global)
