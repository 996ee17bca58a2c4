"""Strided sparse attention: the nearest tokens, and every n-th before (arXiv:1904.10509, section 4.3)."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx

from transformer_jax.attention.contract import Capability
from transformer_jax.attention.engines.softmax import merge
from transformer_jax.attention.engines.softmax_mixer import StoredMixer
from transformer_jax.attention.engines.softmax_plan import band
from transformer_jax.errors import BadInput


class Strided(StoredMixer):
    """A token sees the `stride` tokens before it, and every stride-th one further back.

    Every head sees the union of the paper's two sets, its merged head; the paper also alternates them over
    layers or heads. (The authors' code has l tokens in the first set, with the token itself, where the paper
    has l before it: the union is the same.) With a stride near √T the work is T√T. Decoding reads every key.
    With its sequence cut over devices, the near tokens come from the neighbours; the far ones, spread over
    the whole past, go round a ring.
    """

    name = "strided"
    paper = "arXiv:1904.10509"
    time = "T·(l + T/l)"
    small = {"stride": 5}
    capability = Capability(
        refused={
            "bidirectional": "the paper's sets hold only tokens up to i.",
            "cross": "its strides are counted from a token's own place, which it lacks in a context.",
        }
    )

    def __init__(self, geometry, *, stride: int = 32, rngs: nnx.Rngs):
        if stride < 1:
            raise BadInput(f"strided stride={stride} must be at least 1; the paper has it near √T.")
        super().__init__(geometry, rngs=rngs)
        self.stride = stride

    def definition(self, q, k, v):
        """Section 4.3: A_i⁽¹⁾ = {t, …, i} with t = max(0, i − l), A_i⁽²⁾ = {j ≤ i : (i − j) mod l = 0},
        and the softmax over their union."""
        i, j = jnp.arange(len(q))[:, None], jnp.arange(len(k))[None]
        seen = (j <= i) & ((j >= i - self.stride) | ((i - j) % self.stride == 0))
        return jax.nn.softmax(jnp.where(seen, q @ k.T / jnp.sqrt(q.shape[-1]), -jnp.inf), axis=-1) @ v

    def near(self, i, j):
        return (j <= i) & (i - j <= self.stride)

    def far(self, i, j):
        return (i - j > self.stride) & ((i - j) % self.stride == 0)

    def sees(self, i, j):
        return self.near(i, j) | self.far(i, j)

    def plans(self, length):
        """Of the tokens before, and of one of the interleaved sequences."""
        each = -(-length // self.stride)
        return band(length, length, before=self.stride, after=0), band(each, each, after=0)

    def among(self, streams, layout):
        plan, plan_apart = self.plans(layout.positions.shape[1])
        far = super().among(streams, layout, plan=plan_apart, sees=self.far, step=self.stride)
        return merge([super().among(streams, layout, plan=plan, sees=self.near), far])

    def core_flops(self, batch, length):
        g, (plan, plan_apart) = self.geometry, self.plans(length)
        return 4 * batch * g.heads * g.head_size * (plan.pairs + self.stride * plan_apart.pairs)
