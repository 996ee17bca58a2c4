"""Dense Synthesizer: every token makes the logits of its attention by itself."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx

from transformer_jax.attention.contract import Capability, Geometry, Mixer
from transformer_jax.attention.core import linear_flops
from transformer_jax.attention.variants.full import Full
from transformer_jax.errors import BadInput

ONE_TIME_LINE = "a token's weights are over the places of its own sequence."


class SynthesizerDense(Full):
    """Synthesizer (arXiv:2005.00743), dense: no token meets another before the softmax.

    Each head has its own F of two layers, H wide between them unless `hidden` says otherwise, with as many
    outputs as the model is long; a shorter sequence uses the first, and the causal form hides those to
    come. Logits are not divided by √H. With fewer key-value heads than heads, the second layer is shared
    like their values.

    A token's logit for place j is the product of its hidden layer with column j of the second: the columns
    are keys that belong to places and not to tokens, so the execution, and the cache, is that of softmax
    attention, and no T² array is kept. Places count from the start of a segment. They replace positions: a
    model's rotary embedding is not applied.
    """

    name = "synthesizer_dense"
    paper = "arXiv:2005.00743"
    capability = Capability(refused={"cross": ONE_TIME_LINE})

    def __init__(self, geometry: Geometry, *, hidden: int | None = None, rngs: nnx.Rngs):
        if hidden is not None and hidden < 1:
            raise BadInput(f"synthesizer_dense hidden={hidden} must be at least 1, or None for head_size.")
        Mixer.__init__(self, geometry)  # there is no projection to queries and keys
        g = geometry
        self.hidden = hidden or g.head_size
        self.key_size = self.hidden + 1
        self.first = self.linear(g.width, g.heads * self.hidden, rngs, bias=True)
        self.value = self.linear(g.width, g.kv_heads * g.head_size, rngs)
        self.out = self.joining(g.heads * g.head_size, rngs)
        shape = (g.length, g.kv_heads, self.hidden)
        self.second = nnx.Param(self.hidden**-0.5 * jax.random.normal(rngs.params(), shape))
        self.bias = nnx.Param(jnp.zeros((g.length, g.kv_heads, 1)))

    def definition(self, q, k, v):
        """Section "Dense Synthesizer": Y = softmax(B) G(X), B_ij = F(X_i)_j, F(X) = W₂ σ(W₁ X + b₁) + b₂: the
        rows of q are (σ(W₁ X_i + b₁), 1) and those of k, (column j of W₂, b₂_j). σ is the ReLU and G gives
        v."""
        B = q @ k.T
        if self.geometry.causal:
            B = jnp.where(jnp.tril(jnp.ones(B.shape, bool)), B, -jnp.inf)
        return jax.nn.softmax(B, axis=-1) @ v

    def streams(self, x, layout, state=None, context=None):
        g = self.geometry
        h = jax.nn.relu(self.first(x)).reshape(*x.shape[:2], g.heads, self.hidden)
        columns = jnp.concatenate([self.second[...], self.bias[...]], axis=-1).astype(x.dtype)
        return {
            "q": jnp.concatenate([h, jnp.ones_like(h[..., :1])], axis=-1),
            "k": columns[layout.positions],
            "v": self.value(x).reshape(*x.shape[:2], g.kv_heads, g.head_size),
        }, {}

    @property
    def scale(self):
        return 1.0

    def projection_flops(self, batch, length):
        return linear_flops(batch * length, self.first, self.value, self.out)
