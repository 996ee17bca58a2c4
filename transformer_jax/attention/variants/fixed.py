"""Fixed sparse attention: own block and a summary of each earlier one (arXiv:1904.10509, section 4.3)."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from transformer_jax.attention.contract import Capability
from transformer_jax.attention.engines.softmax import merge
from transformer_jax.attention.engines.softmax_mixer import StoredMixer
from transformer_jax.attention.engines.softmax_plan import Plan, band, row_size, spans
from transformer_jax.errors import BadInput


class Fixed(StoredMixer):
    """A token sees its block of `stride` tokens up to itself, and the last `summary` of every earlier block.

    Every head sees the union of the paper's two sets, its merged head, and all heads have the same summary
    tokens; the paper found heads with different ones better. Decoding reads every key. With its sequence
    cut over devices, blocks come from the neighbours, but every device holds the summaries of all, T·c/l
    tokens.
    """

    name = "fixed"
    paper = "arXiv:1904.10509"
    time = "T·(l + T·c/l)"
    small = {"stride": 6, "summary": 2}
    capability = Capability(
        refused={
            "bidirectional": "the paper's sets hold only tokens up to i.",
            "cross": "its blocks are those of one sequence.",
            "packing": "its blocks are counted from the start of a row, not of a segment.",
        }
    )

    def __init__(self, geometry, *, stride: int = 128, summary: int = 8, rngs: nnx.Rngs):
        if not 1 <= summary <= stride:
            raise BadInput(f"fixed summary={summary} counts tokens of a block: give 1 to stride={stride}.")
        super().__init__(geometry, rngs=rngs)
        self.stride, self.summary = stride, summary

    def definition(self, q, k, v):
        """Section 4.3: A_i⁽¹⁾ = {j : ⌊j/l⌋ = ⌊i/l⌋}, A_i⁽²⁾ = {j : j mod l ≥ l − c}, and the
        softmax over those of their union that are not after i."""
        i, j = jnp.arange(len(q))[:, None], jnp.arange(len(k))[None]
        seen = (j // self.stride == i // self.stride) | (j % self.stride >= self.stride - self.summary)
        scores = jnp.where(seen & (j <= i), q @ k.T / jnp.sqrt(q.shape[-1]), -jnp.inf)
        return jax.nn.softmax(scores, axis=-1) @ v

    def near(self, i, j):
        return (j <= i) & (j // self.stride == i // self.stride)

    def far(self, i, j):
        return (j // self.stride < i // self.stride) & (j % self.stride >= self.stride - self.summary)

    def sees(self, i, j):
        return self.near(i, j) | self.far(i, j)

    def plan(self, queries, keys):
        """A band that holds each token's block."""
        return band(queries, keys, before=self.stride - 1, after=0)

    def summaries(self, length: int) -> np.ndarray:
        """The places of the summary tokens of all blocks but the last."""
        places = np.arange((length - 1) // self.stride * self.stride)
        return places[places % self.stride >= self.stride - self.summary]

    def far_plan(self, length: int) -> Plan:
        block, keys = row_size(length), len(self.summaries(length))
        last = np.minimum(np.arange(block, length + block, block), length) - 1
        stop = last // self.stride * self.summary
        groups = spans(np.zeros_like(stop), stop, keys, block)
        return Plan(queries=length, keys=keys, block=block, groups=groups, reach=(None, None))

    def among(self, streams, layout):
        length = layout.positions.shape[1]
        near = super().among(streams, layout, sees=self.near)
        if length <= self.stride:
            return near
        places = self.summaries(length)
        plan = self.far_plan(length)
        return merge([near, super().among(streams, layout, plan=plan, sees=self.far, places=places)])

    def core_flops(self, batch, length):
        g, pairs = self.geometry, self.plan(length, length).pairs
        if length > self.stride:
            pairs += self.far_plan(length).pairs
        return 4 * batch * g.heads * g.head_size * pairs
