"""Hedgehog: linear attention with learned exponential features, spiky and monotone as softmax is."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx

from transformer_jax.attention.contract import Geometry
from transformer_jax.attention.core import repeat_heads
from transformer_jax.attention.engines.forms import Recurrence
from transformer_jax.attention.engines.recurrence_mixer import RecurrenceMixer


def phi(x: jax.Array) -> jax.Array:
    """[exp(x), exp(−x)], positive; x is the output of the learned layer (arXiv:2402.04347, section 4.2 and
    appendix A)."""
    return jnp.exp(jnp.concatenate([x, -x], axis=-1))


class Hedgehog(RecurrenceMixer):
    """The hedgehog and the porcupine (arXiv:2402.04347), trained from scratch.

    Every head has a layer of its own for queries and one for keys, which start as the identity. The paper
    learns them by distilling softmax attention; that is not done here. φ is that of section 4.2, one layer
    and an exponential, with the negated half of appendix A; nothing is divided by √H, which the layers may
    learn. The normalizer is the sum of the weights, and the engine's stabilizer holds the size of a key's.
    Codes divide it by sums over features, which a key's weight then lacks: the authors' (LoLCATs) each half
    by its own, flash-linear-attention both by one, after doubling x.
    """

    name = "hedgehog"
    paper = "arXiv:2402.04347"
    tolerance = {"float32": 2e-5, "bfloat16": 3e-2}

    def __init__(self, geometry: Geometry, *, rngs: nnx.Rngs):
        super().__init__(geometry, rngs=rngs)
        g = geometry
        identity = lambda heads: jnp.tile(jnp.eye(g.head_size)[None], (heads, 1, 1))
        self.query_map, self.key_map = nnx.Param(identity(g.heads)), nnx.Param(identity(g.kv_heads))
        self.query_shift = nnx.Param(jnp.zeros((g.heads, g.head_size)))
        self.key_shift = nnx.Param(jnp.zeros((g.kv_heads, g.head_size)))

    def definition(self, q, k, v):
        """Equation 2, linear attention: Σ_s φ(q_t)ᵀφ(k_s) v_s / Σ_s φ(q_t)ᵀφ(k_s), over s ≤ t if causal; q
        and k have passed through their layers W x + b."""
        A = phi(q) @ phi(k).T
        if self.geometry.causal:
            A = jnp.tril(A)
        return A @ v / A.sum(axis=1, keepdims=True)

    def streams(self, x, layout, state=None, context=None):
        streams, moved = super().streams(x, layout, state, context)

        def layer(x, weight, shift):
            # Accurate: what is rounded here is exponentiated.
            x = x.astype(jnp.promote_types(jnp.float32, x.dtype))
            return (
                jnp.einsum("btnh,nhf->btnf", x, weight[...].astype(x.dtype))
                + shift[...].astype(x.dtype)[None, None]
            )

        q = layer(streams["q"], self.query_map, self.query_shift)
        return streams | {"q": q, "k": layer(streams["k"], self.key_map, self.key_shift)}, moved

    def recurrence(self, streams):
        heads, q, k = self.geometry.heads, streams["q"], streams["k"]
        highest = jax.lax.stop_gradient(jnp.max(jnp.abs(q), axis=-1, keepdims=True))
        gain = jax.lax.stop_gradient(jnp.max(jnp.abs(k), axis=-1))
        return Recurrence(
            # A factor common to the features of a query cancels; that of a key is its gain.
            q=jnp.exp(jnp.concatenate([q, -q], axis=-1) - highest),
            k=repeat_heads(jnp.exp(jnp.concatenate([k, -k], axis=-1) - gain[..., None]), heads),
            v=repeat_heads(streams["v"], heads).astype(q.dtype),
            log_gain=repeat_heads(gain, heads),
            normalizer="sum",
        )

    def projection_flops(self, batch, length):
        g = self.geometry
        maps = 2 * batch * length * (g.heads + g.kv_heads) * g.head_size**2
        return super().projection_flops(batch, length) + maps
