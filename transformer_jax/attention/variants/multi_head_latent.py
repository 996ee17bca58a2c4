"""Multi-head latent attention: keys and values from one small latent per token (arXiv:2405.04434)."""

from __future__ import annotations

import jax.numpy as jnp
from flax import nnx

from transformer_jax.attention.contract import Capability
from transformer_jax.attention.core import linear_flops
from transformer_jax.attention.engines import softmax_cache
from transformer_jax.attention.heads import HeadMixer
from transformer_jax.attention.rotary import rotate
from transformer_jax.attention.variants.full import Full
from transformer_jax.errors import BadInput


class MultiHeadLatent(Full):
    """DeepSeek-V2's attention, section 2.1: the cache holds a latent and one rotary key per token.

    By default, as in the paper, the latent has 4H channels and the rotary part of q and k H/2 besides
    their H. `query_latent` compresses queries as well (the paper's 1536 in a width of 5120); here they are
    not, as in its smaller model. Both latents are normalized (section 3.1.2). Every head has keys and
    values of its own, so `kv_heads` plays no part. The rotary part turns in every model: by the model's base
    where it is rotary, otherwise by 10000.

    New tokens attend to each other by their keys and values, and to the cache in the absorbed form: W^UK is
    applied to a query and W^UV to the latent that it gets, so that the past is never expanded.
    """

    name = "multi_head_latent"
    paper = "arXiv:2405.04434"
    capability = Capability(
        refused={"cross": "its rotary key tells distances, and tokens of two sequences have none."}
    )
    small = {"query_latent": 12}

    def __init__(
        self,
        geometry,
        *,
        latent: int | None = None,
        rotary_size: int | None = None,
        query_latent: int | None = None,
        rngs: nnx.Rngs,
    ):
        g = geometry
        latent = 4 * g.head_size if latent is None else latent
        turned = g.head_size // 2 if rotary_size is None else rotary_size
        if latent < 1 or (query_latent is not None and query_latent < 1):
            raise BadInput(
                f"multi_head_latent latent={latent} and query_latent={query_latent} count channels: give 1 "
                f"or more, or None for the default."
            )
        if turned < 2 or turned % 2:
            raise BadInput(
                f"multi_head_latent rotary_size={turned} (H/2 unless given) counts channels that turn in "
                f"pairs: give an even number."
            )
        super(HeadMixer, self).__init__(g)  # its projections are others
        self.latent, self.turned, self.key_size = latent, turned, g.head_size + turned
        norm = lambda size: nnx.RMSNorm(size, dtype=jnp.dtype(g.dtype), rngs=rngs)
        self.query_down = (
            None if query_latent is None else self.linear(g.width, query_latent, rngs, axes="embed -")
        )
        self.query_norm = None if query_latent is None else norm(query_latent)
        self.query = self.linear(
            query_latent or g.width,
            g.heads * self.key_size,
            rngs,
            axes="embed heads" if query_latent is None else "- heads",
        )
        self.down, self.norm = self.linear(g.width, latent, rngs, axes="embed -"), norm(latent)
        self.rotary_key = self.linear(g.width, turned, rngs, axes="embed -")
        self.key = self.linear(latent, g.heads * g.head_size, rngs, axes="- heads")
        self.value = self.linear(latent, g.heads * g.head_size, rngs, axes="- heads")
        self.out = self.joining(g.heads * g.head_size, rngs)

    def definition(self, q, k, v):
        """Equation 18: o_t = Σ_j Softmax_j(q_tᵀ k_j / √(d_h + d_h^R)) v_j^C, with q = [q^C; q^R] and
        k = [k^C; k^R] (equations 16 and 17)."""
        return super().definition(q, k, v)

    def streams(self, x, layout, state=None, context=None):
        """Equations 9 to 17; with a state also what the cache will hold of each token, [c^KV; k^R]."""
        g, base = self.geometry, self.geometry.rotary or 10_000.0
        in_heads = lambda x: x.reshape(*x.shape[:2], g.heads, -1)
        if self.query_down is not None and self.query_norm is not None:
            q = in_heads(self.query(self.query_norm(self.query_down(x))))
        else:
            q = in_heads(self.query(x))
        q_R = rotate(q[..., g.head_size :], layout.positions, base)
        k_R = rotate(self.rotary_key(x)[:, :, None], layout.positions, base)
        c = self.norm(self.down(x))
        k_C, v = in_heads(self.key(c)), in_heads(self.value(c))
        shared = jnp.broadcast_to(k_R, (*k_C.shape[:3], self.turned))
        q = jnp.concatenate([q[..., : g.head_size], q_R], axis=-1)
        streams = {"q": q, "k": jnp.concatenate([k_C, shared], axis=-1), "v": v}
        if state is not None:
            streams["cached"] = jnp.concatenate([c[:, :, None], k_R], axis=-1)
        return streams, {}

    def past(self, streams, layout, state):
        """The absorbed form: (W^UK c)ᵀ q^C = cᵀ (W^UKᵀ q^C), and the sum of W^UV c is W^UV of the sum."""
        g, q = self.geometry, streams["q"]
        W_UK, W_UV = (
            w.kernel[...].astype(q.dtype).reshape(self.latent, g.heads, -1) for w in (self.key, self.value)
        )
        q_C = jnp.einsum("btnh,cnh->btnc", q[..., : g.head_size], W_UK)
        absorbed = jnp.concatenate([q_C, q[..., g.head_size :]], axis=-1)
        (o, lse), state = super().past({"q": absorbed, "k": streams["cached"]}, layout, state)
        return (jnp.einsum("btnc,cnh->btnh", o[..., : self.latent], W_UV.astype(o.dtype)), lse), state

    def init_state(self, batch):
        g = self.geometry
        state = softmax_cache.empty(batch, 1, self.latent + self.turned, g.length, g.dtype)
        return {name: x for name, x in state.items() if name != "v"}

    def projection_flops(self, batch, length):
        layers = [self.query, self.down, self.rotary_key, self.key, self.value, self.out]
        layers += [] if self.query_down is None else [self.query_down]
        return linear_flops(batch * length, *layers)
