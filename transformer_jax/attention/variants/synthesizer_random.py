"""Random Synthesizer: the matrix of attention is learned, the same for every input."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx

from transformer_jax.attention.contract import Capability, Geometry, Mixer
from transformer_jax.attention.core import linear_flops, repeat_heads
from transformer_jax.attention.engines import softmax_cache
from transformer_jax.attention.heads import HeadMixer
from transformer_jax.attention.variants.synthesizer_dense import ONE_TIME_LINE
from transformer_jax.errors import BadInput


class SynthesizerRandom(HeadMixer):
    """Synthesizer (arXiv:2005.00743), random and trained, or with `rank` factorized random.

    R has length² numbers for each head, which grow with the model's length and not with its width; factors
    have 2·rank·length (the paper's rank is 8). R starts normal with variance 1, and logits are not divided by
    √H. A shorter sequence uses its first rows and columns, and the causal form hides what is to come. Places
    count from the start of a segment; a model's rotary embedding is not applied. The softmax is computed once
    for all rows of a batch that are neither padded nor packed; decoding keeps the values.
    """

    name = "synthesizer_random"
    family = "softmax"
    paper = "arXiv:2005.00743"
    time = "T²"
    state = "T"
    capability = Capability(refused={"cross": ONE_TIME_LINE})

    def __init__(self, geometry: Geometry, *, rank: int | None = None, rngs: nnx.Rngs):
        if rank is not None and rank < 1:
            raise BadInput(
                f"synthesizer_random rank={rank} must be at least 1, or None for no factors; "
                f"the paper uses 8."
            )
        Mixer.__init__(self, geometry)  # there is no projection to queries and keys
        g = geometry
        self.rank = rank
        self.value = self.linear(g.width, g.kv_heads * g.head_size, rngs)
        self.out = self.joining(g.heads * g.head_size, rngs)
        normal = lambda size: jax.random.normal(rngs.params(), (g.heads, g.length, size))
        if rank is None:
            self.R = nnx.Param(normal(g.length))
        else:
            self.R1, self.R2 = (nnx.Param(rank**-0.25 * normal(rank)) for _ in range(2))

    def weights(self):
        if self.rank is None:
            return {"R": self.R[...]}
        return {"R1": self.R1[...], "R2": self.R2[...]}

    def definition(self, v, R=None, R1=None, R2=None):
        """Section "Random Synthesizer": Y = softmax(R) G(X), and R = R₁ R₂ᵀ if factorized (section
        "Factorized Random Synthesizer"); G gives v."""
        R = (R1 @ R2.T if R is None else R)[: len(v), : len(v)]
        if self.geometry.causal:
            R = jnp.where(jnp.tril(jnp.ones(R.shape, bool)), R, -jnp.inf)
        return jax.nn.softmax(R, axis=-1) @ v

    def streams(self, x, layout, state=None, context=None):
        return {"v": self.value(x).reshape(*x.shape[:2], -1, self.geometry.head_size)}, {}

    def logits(self, rows, columns) -> jax.Array:
        """R at some places: both (T,) and (S,) → (N, T, S)."""
        if self.rank is None:
            return self.R[...][:, rows][:, :, columns]
        return jnp.einsum("ntr,nsr->nts", self.R1[...][:, rows], self.R2[...][:, columns])

    def core(self, streams, layout, state):
        v, place, length = streams["v"], layout.positions, streams["v"].shape[1]
        exact = jnp.promote_types(jnp.float32, v.dtype)
        if state is None:
            segment = jnp.zeros((1, length), jnp.int32) if layout.segments is None else layout.segments
            index = index_k = jnp.arange(length)[None]
            segment_k = segment if layout.valid is None else jnp.where(layout.valid, segment, -1)
            first = slice(length)
            plain = layout.segments is None
            R = self.logits(first, first)[None] if plain else jax.vmap(self.logits)(place, place)
        else:
            stands = softmax_cache.stands(layout, state)
            index, segment = stands["index"], stands["segment"]
            state = softmax_cache.store(state, {"v": v, "place": place}, layout)
            index_k, segment_k = jnp.arange(state["segment"].shape[1])[None], state["segment"]
            R = jax.vmap(self.logits)(place, state["place"])
            v = jnp.moveaxis(state["v"], -1, 1)
        seen = segment[:, :, None] == segment_k[:, None]
        if self.geometry.causal:
            seen &= index_k[:, None] <= index[:, :, None]
        A = jax.nn.softmax(jnp.where(seen[:, None], R.astype(exact), jnp.finfo(exact).min), axis=-1)
        v = jnp.moveaxis(repeat_heads(v, self.geometry.heads), 2, 1)
        return jnp.moveaxis(jnp.matmul(A, v.astype(exact)), 1, 2), state or {}

    def init_state(self, batch):
        g = self.geometry
        state = softmax_cache.empty(batch, g.kv_heads, g.head_size, g.length, g.dtype)
        del state["k"]
        return state | {"place": jnp.zeros((batch, g.length), jnp.int32)}

    def core_flops(self, batch, length):
        pairs = self.geometry.heads * length**2
        return 2 * pairs * (batch * self.geometry.head_size + (self.rank or 0))

    def projection_flops(self, batch, length):
        return linear_flops(batch * length, self.value, self.out)
