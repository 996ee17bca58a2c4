"""Mixture of Block Attention: queries choose blocks of keys by their mean (MoBA, arXiv:2502.13189)."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax

from transformer_jax.attention.contract import Capability
from transformer_jax.attention.core import repeat_heads
from transformer_jax.attention.engines import softmax_cache
from transformer_jax.attention.engines.softmax import merge
from transformer_jax.attention.engines.softmax_chosen import (
    attend_chosen,
    best,
    by_chunks,
    padded_length,
    rows_of,
)
from transformer_jax.attention.engines.softmax_mixer import CachedMixer
from transformer_jax.attention.engines.softmax_plan import own_blocks
from transformer_jax.errors import BadInput


class Moba(CachedMixer):
    """A token sees its own block up to itself, and the top_k − 1 earlier blocks whose mean key fits its query
    best.

    The own block counts as one of the `top_k`, as in the paper. Every query head chooses for itself, among
    means of the keys as they are placed (rotated). No gradient goes through the choice. A head takes T²/block
    products to choose, and T·top_k·block for what it sees. Decoding takes the means from the cache, so it
    reads every key, and of the values those of blocks that some head has chosen.
    """

    name = "moba"
    paper = "arXiv:2502.13189"
    time = "T·(k·b + T/b)"
    small = {"block": 8, "top_k": 3}
    capability = Capability(
        refused={
            "bidirectional": "it is defined by what lies before a token: its block up to itself, and earlier "
            "ones.",
            "cross": "a context holds no block of the token's own.",
            "packing": "its blocks are counted from the start of a row, not of a segment.",
        },
        sequence="gathered",
    )

    def __init__(self, geometry, *, block: int = 64, top_k: int = 3, rngs: nnx.Rngs):
        if block < 1 or top_k < 1:
            raise BadInput(f"moba block={block} and top_k={top_k} count tokens and blocks: give 1 or more.")
        super().__init__(geometry, rngs=rngs)
        self.block, self.top_k = block, top_k

    def definition(self, q, k, v, chosen=None):
        """Equations 2–6: s_b = ⟨q, mean(K[I_b])⟩, −∞ for blocks after the query's and +∞ for its own; g_b = 1
        for the top k; softmax(q K[I]ᵀ / √H) V[I] over the blocks with g_b = 1, causally."""
        i, j = jnp.arange(len(q))[:, None], jnp.arange(len(k))[None]
        own, blocks = i // self.block, jnp.arange(-(-len(k) // self.block))[None]
        member = j // self.block == blocks.T
        if chosen is None:
            s = q @ (member @ k / member.sum(axis=1, keepdims=True)).T
            s = jnp.where(blocks < own, s, jnp.where(blocks == own, jnp.inf, -jnp.inf))
            rank = jnp.argsort(jnp.argsort(-s, axis=1, stable=True), axis=1)
            gate = rank < self.top_k
        else:
            gate = (chosen[:, :, None] == blocks[None]).any(axis=1) | (blocks == own)
        seen = (gate @ member) & (j <= i)
        return jax.nn.softmax(jnp.where(seen, q @ k.T / jnp.sqrt(q.shape[1]), -jnp.inf), axis=-1) @ v

    def sees(self, i, j):
        return (j <= i) & (i // self.block == j // self.block)

    def plan(self, queries, keys):
        return own_blocks(queries, keys, self.block)

    def selection(self, streams, layout):
        k = streams["k"].astype(jnp.promote_types(jnp.float32, streams["k"].dtype))
        index = jnp.broadcast_to(jnp.arange(k.shape[1]), k.shape[:2])
        return {"chosen": self.choose(streams["q"], index, k)}

    def choose(self, q: jax.Array, index: jax.Array, k: jax.Array) -> jax.Array:
        """(B, T, N, top_k − 1), the earlier blocks that queries at `index` (B, T) choose among keys k
        (B, S, K, H). Blocks before a query's are whole."""
        blocks = self.before(k.shape[1])
        k = lax.stop_gradient(k)[:, : blocks * self.block]
        means = k.reshape(k.shape[0], blocks, self.block, *k.shape[2:]).mean(axis=2)
        means = repeat_heads(means, q.shape[2])

        def some(q, index):
            s = jnp.einsum("btnh,bcnh->btnc", q.astype(means.dtype), means)
            earlier = jnp.arange(blocks)[None, None] < (index // self.block)[..., None]
            return best(jnp.where(earlier[:, :, None], s, -jnp.inf), self.top_k - 1)

        return by_chunks(some, q.shape[1], lax.stop_gradient(q), index)

    def before(self, length: int) -> int:
        """How many blocks lie before the last token's."""
        return (length - 1) // self.block

    def core(self, streams, layout, state):
        if state is not None:
            return super().core(streams, layout, state)
        parts = [self.among(streams, layout)]
        if "chosen" not in streams:
            streams = streams | self.selection(streams, layout)
        if streams["chosen"].shape[-1]:
            q, (k, v) = streams["q"], (repeat_heads(streams[name], self.geometry.heads) for name in "kv")
            whole = lambda qk, query, key, shared: qk * self.scale
            parts.append(attend_chosen(q, k, v, streams["chosen"], self.block, whole))
        return merge(parts)[0], {}

    def score(self, qk, query, key, shared, sees=None):
        if "chosen" not in query:
            return super().score(qk, query, key, shared, sees)
        block = key["index"][None] // self.block
        seen = (query["chosen"][:, :, None] == block[None]).any(axis=1)
        seen |= self.sees(query["index"][:, None], key["index"][None])
        return jnp.where(seen, qk * self.scale, -jnp.inf)

    def continued(self, streams, layout, state):
        query = softmax_cache.stands(layout, state)
        state = softmax_cache.store(state, {"k": streams["k"], "v": streams["v"]}, layout)
        q, k = streams["q"], jnp.moveaxis(state["k"], -1, 1)
        chosen = self.choose(q, query["index"], k.astype(jnp.promote_types(jnp.float32, k.dtype)))
        query["chosen"] = chosen
        own = query["index"] // self.block
        needed = lambda first: jnp.any(chosen == first // self.block) | jnp.any(own == first // self.block)
        found = softmax_cache.attend_cache(q, query, state, self.score, piece=self.block, needed=needed)
        return found, state

    def core_flops(self, batch, length):
        g, blocks = self.geometry, self.before(length)
        chosen = min(self.top_k - 1, blocks)
        pairs = self.plan(length, length).pairs
        if chosen:
            pairs += rows_of(length, chosen, length, self.block) * self.block**2
        choosing = padded_length(length) * blocks
        return batch * g.heads * g.head_size * (4 * pairs + 2 * choosing)
