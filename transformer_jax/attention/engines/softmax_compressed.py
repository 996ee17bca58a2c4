"""Softmax over compressed blocks, and the blocks of tokens that it selects (arXiv:2502.11089)."""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from transformer_jax.attention.engines.softmax import attend
from transformer_jax.attention.engines.softmax_chosen import best, by_chunks, padded_length, rows_of
from transformer_jax.attention.engines.softmax_plan import Plan, row_size, spans
from transformer_jax.attention.engines.softmax_rows import Score


@dataclass(frozen=True)
class Grid:
    """Where the blocks lie, in the paper's letters.

    Attributes:
      compress: l, tokens of a compressed block. stride: d, from one such block to the next.
      block: l', tokens of a block that is selected. selected: n, how many a query selects.
    """

    compress: int
    stride: int
    block: int
    selected: int

    def compressed(self, tokens: int) -> int:
        """How many compressed blocks are whole."""
        return max(0, (tokens - self.compress) // self.stride + 1)

    def cut(self, x: jax.Array) -> jax.Array:
        """x (B, S, K, H) → (B, compressed blocks, K, l, H)."""
        strides = x.shape[1] // self.stride
        cut = x[:, : strides * self.stride].reshape(x.shape[0], strides, self.stride, *x.shape[2:])
        blocks = self.compressed(x.shape[1])
        parts = [cut[:, n : n + blocks] for n in range(self.compress // self.stride)]
        return jnp.moveaxis(jnp.concatenate(parts, axis=2), 2, 3)

    def ends(self, blocks: int) -> jax.Array:
        """The last token of each compressed block: from it on, the block is seen."""
        return self.stride * jnp.arange(blocks) + self.compress - 1

    def plan(self, queries: int) -> Plan:
        """Queries of a whole sequence, and the compressed blocks that are over."""
        block, keys = row_size(queries), self.compressed(queries)
        last = np.minimum(np.arange(block, queries + block, block), queries)
        stop = np.maximum((last - self.compress) // self.stride + 1, 0)
        return Plan(queries=queries, keys=keys, block=block, groups=spans(0 * stop, stop, keys, block))

    def attend(self, q, index, k, v, plan: Plan, score: Score) -> jax.Array:
        """Attention of queries at `index` to compressed keys and values (B, blocks, K, H)."""
        if not k.shape[1]:
            return jnp.zeros(q.shape, k.dtype)
        end = {"index": self.ends(k.shape[1])}
        return attend(q.astype(k.dtype), k, v, plan, score, query={"index": index}, key=end)[0]

    def choose(self, group: jax.Array, index: jax.Array, k: jax.Array, keys: int) -> jax.Array:
        """The blocks, of those of so many keys, that the compressed keys k (B, blocks, K, H) select.

        Args:
          group: (B, T, K, G, H), the queries that choose together, scaled. index: where they stand.

        Returns:
          (B, T, K, n), −1 where absent: the first, a token's own and the one before, then the largest.
        """
        k, blocks, ends = lax.stop_gradient(k), -(-keys // self.block), self.ends(k.shape[1])

        def some(group, index):
            s = jnp.einsum("btkgh,bckh->btkgc", group.astype(k.dtype), k)
            s = jnp.where((ends[None, None] <= index[..., None])[:, :, None, None], s, -jnp.inf)
            p = jnp.exp(s - jnp.maximum(jnp.max(s, axis=-1, keepdims=True, initial=-jnp.inf), -1e30))
            total = jnp.sum(p, axis=-1, keepdims=True)
            p = self.shared(jnp.sum(p / jnp.where(total > 0, total, 1), axis=3), blocks)
            block, own = jnp.arange(blocks)[None, None], index[..., None] // self.block
            always = (block == 0) | (block == own) | (block == own - 1)
            p = jnp.where(always[:, :, None], jnp.inf, p)
            return best(jnp.where((block <= own)[:, :, None], p, -jnp.inf), self.selected)

        index = jnp.broadcast_to(index, group.shape[:2])
        return by_chunks(some, group.shape[1], lax.stop_gradient(group), index)

    def shared(self, p: jax.Array, blocks: int) -> jax.Array:
        """p (…, compressed blocks) → (…, blocks): each block is given the p of every compressed block once
        for every stride that they share (equation 9, counted from 0)."""
        width, each = self.compress // self.stride, self.block // self.stride
        p = jnp.pad(p, [(0, 0)] * (p.ndim - 1) + [(width - 1, blocks * each - p.shape[-1])])
        terms = (p[..., m - n + width - 1 :: each][..., :blocks] for m in range(each) for n in range(width))
        return jnp.asarray(sum(terms))

    def products(self, length: int) -> int:
        """Products of two vectors of a head's size, for one head: to choose, and to attend to what is
        compressed and what is selected."""
        compressed, selected = self.compressed(length), min(self.selected, -(-length // self.block))
        pairs = rows_of(length, selected, length, self.block) * self.block**2
        if compressed:
            pairs += self.plan(length).pairs
        return 2 * pairs + padded_length(length) * compressed
