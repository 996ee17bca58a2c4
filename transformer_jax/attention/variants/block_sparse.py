"""Attention over listed blocks (block-sparse FlashAttention, arXiv:2205.14135, section 3.3)."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from transformer_jax.attention.contract import Capability
from transformer_jax.attention.engines.softmax_mixer import StoredMixer
from transformer_jax.attention.engines.softmax_plan import Plan, listed
from transformer_jax.errors import BadInput


class BlockSparse(StoredMixer):
    """A block of `block` queries sees the key blocks that `blocks` lists for it; no others are computed.

    `blocks[r]` has the numbers of the key blocks of query block r, the paper's row M_r, as a tuple: a mask
    M (blocks, blocks) is `tuple(tuple(np.flatnonzero(row).tolist()) for row in M)`. There is a row for each
    block of the model's length, the same for all heads, and each has its own block, so that no token is
    without a key. Causal: of the blocks listed, the past remains. With c blocks of b tokens in a row the work
    is T·c·b; decoding reads every key.
    """

    name = "block_sparse"
    paper = "arXiv:2205.14135"
    time = "T·c·b"
    capability = Capability(
        refused={
            "cross": "its blocks pair a sequence with itself.",
            "packing": "its blocks are counted from the start of a row, not of a segment.",
        },
        sequence="gathered",
        notes={"causal": "the listed blocks, of which the past remains"},
    )
    small = {"block": 8, "blocks": tuple(tuple(sorted({0, r // 2, r, min(r + 2, 511)})) for r in range(512))}

    def __init__(
        self, geometry, *, block: int = 64, blocks: tuple[tuple[int, ...], ...] = (), rngs: nnx.Rngs
    ):
        if block < 1 or len(blocks) * block < geometry.length:
            raise BadInput(
                f"block_sparse blocks has rows for {len(blocks)} blocks of block={block} tokens, which do "
                f"not cover length={geometry.length}: give, for each block of queries, its key blocks."
            )
        there = set(range(len(blocks)))
        for row, keys in enumerate(blocks):
            if row not in keys or len(set(keys)) < len(keys) or not there.issuperset(keys):
                raise BadInput(
                    f"block_sparse blocks[{row}]={keys} must have {row} itself, and no block twice, of those "
                    f"from 0 to {len(blocks) - 1}."
                )
        super().__init__(geometry, rngs=rngs)
        self.block, self.blocks = block, blocks

    def allowed(self, i, j):
        """M̃_ij = M_rc with r = ⌊i/b⌋ and c = ⌊j/b⌋."""
        M = np.zeros((len(self.blocks), len(self.blocks)), bool)
        for row, keys in enumerate(self.blocks):
            M[row, list(keys)] = True
        return jnp.asarray(M)[i // self.block, j // self.block]

    def definition(self, q, k, v):
        """Section 3.3: S = Q Kᵀ / √H, P = softmax(S ⊙ 1_M̃), O = P V, where S ⊙ 1_M̃ is −∞ outside of M̃."""
        i, j = jnp.arange(len(q))[:, None], jnp.arange(len(k))[None]
        seen = self.allowed(i, j) & (j <= i) if self.geometry.causal else self.allowed(i, j)
        return jax.nn.softmax(jnp.where(seen, q @ k.T / jnp.sqrt(q.shape[-1]), -jnp.inf), axis=-1) @ v

    def sees(self, i, j):
        """Of a cache, which holds blocks that are not listed. Only causal models have one."""
        return self.allowed(i, j) & (j <= i)

    def within(self, i, j):
        """Of listed blocks, where only the direction matters."""
        return j <= i if self.geometry.causal else None

    def plan(self, queries, keys):
        count = -(-queries // self.block)
        last = range(count) if self.geometry.causal else [count - 1] * count
        rows = [[key for key in self.blocks[row] if key <= last[row]] for row in range(count)]
        groups = listed(rows, self.block)
        return Plan(queries=queries, keys=keys, block=min(self.block, queries), groups=groups)
