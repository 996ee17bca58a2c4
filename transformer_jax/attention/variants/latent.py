"""A latent bottleneck: a few learned latents read the tokens, and the tokens read the latents."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx

from transformer_jax.attention.contract import Capability, Geometry
from transformer_jax.attention.core import linear_flops
from transformer_jax.attention.engines import landmarks as engine
from transformer_jax.attention.heads import HeadMixer
from transformer_jax.errors import BadInput


class Latent(HeadMixer):
    """Luna (arXiv:2106.01540), its pack and unpack attention, with softmax in both and latents of each layer.

    Luna hands the packed latents of a layer to the next; a mixer passes on nothing but y, so here every
    layer has its own, as the induced points of the Set Transformer (arXiv:1810.00825) are. It is not the
    Perceiver (arXiv:2103.03206): that packs alike, but then stays among its latents and has no unpacking
    in its layers. The latents P meet nothing but the projection of their queries, so that P W_Q is one
    learned array; tokens are projected to the keys and values of the packing, which some of the authors'
    code omits. Between pack and unpack there is neither norm nor residual, as in Luna's equations. All
    heads read all of the packed latents. Tokens and latents share no time line: a model's rotary embedding
    is not applied.
    """

    name = "latent"
    family = "landmarks"
    paper = "arXiv:2106.01540"
    time = "T·m"
    state = "none"
    small = {"latents": 6}
    no_matrix = "the packed values are also the keys of the unpacking, inside its softmax."
    capability = Capability(
        refused={
            "causal": "every latent reads all tokens, so it would leak the future.",
            "packing": "every latent reads all tokens of a row, so it would mix documents.",
            "decoding": "every latent reads all tokens, so each new token changes all outputs before it.",
        },
        sequence="parallel",
        notes={"cross": "the latents pack the context"},
    )

    def __init__(self, geometry: Geometry, *, latents: int = 64, rngs: nnx.Rngs):
        if latents < 1:
            raise BadInput(f"latent latents={latents} must be at least 1; the paper uses 16 to 256.")
        super().__init__(geometry, rngs=rngs)
        g = geometry
        self.latents = nnx.Param(jax.random.normal(rngs.params(), (latents, g.heads, g.head_size)))
        packed = g.heads * g.head_size
        self.packed_key = self.linear(packed, g.kv_heads * g.head_size, rngs, axes="- heads")
        self.packed_value = self.linear(packed, g.kv_heads * g.head_size, rngs, axes="- heads")

    @property
    def mixed_heads(self):
        """One, of all heads: they meet between packing and unpacking."""
        return 1

    def weights(self):
        learned = {"P": self.latents, "W_K": self.packed_key.kernel, "W_V": self.packed_value.kernel}
        return {name: parameter[...][None] for name, parameter in learned.items()}

    def definition(self, q, k, v, P, W_K, W_V):
        """Y_P = Attn(P, C), Y_X = Attn(X, Y_P) (section 3.1): q of X is (T, N, H), k and v of C (S, K, H), P
        is projected already, and W_K and W_V project Y_P, its heads joined."""

        def attention(q, k, v):  # of N heads, with K key-value heads
            k, v = (jnp.repeat(x, q.shape[1] // x.shape[1], axis=1) for x in (k, v))
            one = lambda q, k, v: jax.nn.softmax(q @ k.T / q.shape[1] ** 0.5, axis=-1) @ v
            return jax.vmap(one, 1, 1)(q, k, v)

        Y_P = attention(P.astype(q.dtype), k, v).reshape(len(P), -1)
        return attention(q, *((Y_P @ W).reshape(len(P), *k.shape[1:]) for W in (W_K, W_V)))

    def streams(self, x, layout, state=None, context=None):
        streams, moved = super().streams(x, layout, state, context)
        return {name: stream[:, :, None] for name, stream in streams.items()}, moved

    def placed(self, x, positions):
        return x

    def core(self, streams, layout, state):
        q, k, v = (streams[name][:, :, 0] for name in ("q", "k", "v"))
        P, W_K, W_V = (self.weights()[name][0] for name in ("P", "W_K", "W_V"))
        P = jnp.broadcast_to(P[None].astype(k.dtype), (len(k), *P.shape))
        Y_P = engine.attend(P, k, v, layout.valid).reshape(*P.shape[:2], -1)
        packed = (Y_P @ W.astype(Y_P.dtype) for W in (W_K, W_V))
        keys, values = (x.reshape(*P.shape[:2], *k.shape[2:]).astype(q.dtype) for x in packed)
        return engine.attend(q, keys, values)[:, :, None], {}

    def core_flops(self, batch, length):
        g, m = self.geometry, len(self.latents[...])
        between = linear_flops(batch * m, self.packed_key, self.packed_value)
        flops = partial(engine.attend_flops, batch, heads=g.heads, size=g.head_size)
        return between + flops(m, length) + flops(length, m)
