"""Sparse Sinkhorn attention: blocks see themselves and a learned sorting of them (arXiv:2002.11296)."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx

from transformer_jax.attention.contract import Capability
from transformer_jax.attention.core import linear_flops, repeat_heads
from transformer_jax.attention.engines.softmax import attend, merge
from transformer_jax.attention.engines.softmax_mixer import SoftmaxMixer
from transformer_jax.attention.engines.softmax_plan import own_blocks
from transformer_jax.attention.engines.softmax_rows import accurate
from transformer_jax.errors import BadInput


class Sinkhorn(SoftmaxMixer):
    """A block of tokens sees itself, and the block of keys and values that a sorting network brings to its
    place: one softmax over the keys of both.

    The sorting is soft: a doubly stochastic matrix mixes blocks, token by token. Its network reads the sum of
    each block, and each head has a last layer of its own. The paper writes the scores of both blocks as one
    sum; as in codes of it, keys and values of both stand side by side. Where the last block is short, what it
    lacks counts as zeros. Balancing starts from e^(R/τ), as the paper has it; a known code in PyTorch takes
    the logarithm of R first, and so starts from R^(1/τ). The Gumbel noise of the paper's training is left
    out: a mixer draws nothing at random. A sequence of fewer blocks than the model's uses the first columns
    of the network. Sorting takes T²/block products of a head.
    """

    name = "sinkhorn"
    paper = "arXiv:2002.11296"
    time = "T·(b + T/b)"
    small = {"block": 6, "iterations": 3}
    capability = Capability(
        refused={
            "causal": "every block is sorted by the sums of all, so it would leak the future; the paper's "
            "causal balancing, with other sums and another normalization, is another mechanism.",
            "cross": "its blocks pair a sequence with itself.",
            "packing": "its blocks are cut from all tokens of a row, so it would mix documents.",
            "decoding": "every block is sorted by the sums of all, so each new token changes all outputs.",
        },
        sequence="gathered",
    )

    def __init__(
        self,
        geometry,
        *,
        block: int = 64,
        iterations: int = 8,
        temperature: float = 0.75,
        rngs: nnx.Rngs,
    ):
        if block < 1 or iterations < 1 or temperature <= 0:
            raise BadInput(
                f"sinkhorn block={block} and iterations={iterations} must be at least 1, and "
                f"temperature={temperature} above 0."
            )
        super().__init__(geometry, rngs=rngs)
        g, dtype = geometry, jnp.dtype(geometry.dtype)
        self.block, self.iterations, self.temperature = block, iterations, temperature
        self.hidden = nnx.Linear(g.width, g.width, dtype=dtype, rngs=rngs)
        self.sort = nnx.Linear(g.width, g.heads * self.blocks(g.length), dtype=dtype, rngs=rngs)

    def blocks(self, length: int) -> int:
        return -(-length // self.block)

    def streams(self, x, layout, state=None, context=None):
        """`sort`: R = P(X'), (B, blocks, N, blocks), with X' the sums of the blocks and
        P(X') = σ(W_P σ(W_B X' + b_B) + b_P), σ the rectifier."""
        streams, moved = super().streams(x, layout, state, context)
        some = x if layout.valid is None else jnp.where(layout.valid[..., None], x, 0)
        sums = self.cut(some.astype(accurate(x.dtype))).sum(axis=2).astype(x.dtype)
        R = jax.nn.relu(self.sort(jax.nn.relu(self.hidden(sums))))
        R = R.reshape(*sums.shape[:2], self.geometry.heads, -1)
        return streams | {"sort": R[..., : sums.shape[1]]}, moved

    def cut(self, x: jax.Array) -> jax.Array:
        """(B, T, …) → (B, blocks, block, …), zeros where the last is short."""
        blocks = self.blocks(x.shape[1])
        missing = blocks * self.block - x.shape[1]
        x = jnp.pad(x, [(0, missing if axis == 1 else 0) for axis in range(x.ndim)])
        return x.reshape(x.shape[0], blocks, self.block, *x.shape[2:])

    def definition(self, q, k, v, sort):
        """S⁰ = exp(R / τ), Sᵏ = F_c(F_r(Sᵏ⁻¹)), rows and columns divided by their sums; then for every block
        softmax(Q [S K, K]ᵀ / √H) [S V, V] (section "Sparse Sinkhorn Attention" and the balancing before)."""
        S = jnp.exp((sort - sort.max()) / self.temperature)
        for _ in range(self.iterations):
            S = S / S.sum(axis=1, keepdims=True)
            S = S / S.sum(axis=0, keepdims=True)
        b, n, block = self.block, len(S), jnp.arange(len(q)) // self.block
        blocks = lambda x: jnp.pad(x, ((0, n * b - len(x)), (0, 0))).reshape(n, b, -1)
        K, V = (jnp.einsum("ac,cph->aph", S, blocks(x)) for x in (k, v))
        there = jnp.arange(b)[None] < len(k)
        moved = jnp.where(there, jnp.einsum("th,tph->tp", q, K[block]), -jnp.inf)
        own = jnp.where(block[:, None] == block[None], q @ k.T, -jnp.inf)
        A = jax.nn.softmax(jnp.concatenate([moved, own], axis=1) / jnp.sqrt(q.shape[1]), axis=1)
        return jnp.einsum("tp,tph->th", A[:, :b], V[block]) + A[:, b:] @ v

    def sorting(self, R: jax.Array, lengths: jax.Array | None) -> jax.Array:
        """S (B, blocks, N, blocks); blocks of padding stay where they are."""
        blocks, S = R.shape[1], R.astype(accurate(R.dtype)) / self.temperature
        if lengths is not None:
            there = jnp.arange(blocks)[None] * self.block < lengths[:, None]
            both = (there[:, :, None] & there[:, None])[:, :, None]
            S = jnp.where(both, S, jnp.where(jnp.eye(blocks, dtype=bool)[None, :, None], 0, -jnp.inf))
        for _ in range(self.iterations):
            S = S - jax.nn.logsumexp(S, axis=3, keepdims=True)
            S = S - jax.nn.logsumexp(S, axis=1, keepdims=True)
        return jnp.exp(S)

    def core(self, streams, layout, state):
        heads, length = self.geometry.heads, layout.positions.shape[1]
        S = self.sorting(streams["sort"], layout.lengths)

        def sort(x):
            if layout.valid is not None:
                x = jnp.where(layout.valid[..., None, None], x, 0)
            x = self.cut(repeat_heads(x, heads).astype(S.dtype))
            moved = jnp.einsum("banc,bcpnh->bapnh", S, x)
            return moved.reshape(x.shape[0], -1, *x.shape[3:])

        q, k, v = streams["q"].astype(S.dtype), sort(streams["k"]), sort(streams["v"])
        lengths = jnp.full(len(q), length) if layout.lengths is None else layout.lengths
        places = (jnp.arange(k.shape[1]) % self.block)[None]
        key = {"segment": jnp.where(places < lengths[:, None], 0, -1)}
        query = {"segment": jnp.zeros(q.shape[:2], jnp.int32)}
        plan = own_blocks(length, k.shape[1], self.block)
        return merge([self.among(streams, layout), attend(q, k, v, plan, self.score, query=query, key=key)])[
            0
        ], {}

    def sees(self, i, j):
        return None

    def plan(self, queries, keys):
        return own_blocks(queries, keys, self.block)

    def core_flops(self, batch, length):
        g, blocks = self.geometry, self.blocks(length)
        pairs = 2 * self.plan(length, length).pairs + blocks * blocks * self.block
        return 4 * batch * g.heads * g.head_size * pairs

    def projection_flops(self, batch, length):
        sorting = linear_flops(batch * self.blocks(length), self.hidden, self.sort)
        return super().projection_flops(batch, length) + sorting
