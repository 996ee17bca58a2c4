"""ALiBi: attention with linear biases, a penalty on distance in place of positions (arXiv:2108.12409)."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from transformer_jax.attention.contract import Capability
from transformer_jax.attention.variants.full import Full


def slopes(heads: int) -> np.ndarray:
    """(N,) the slopes of section 3: 2^(−8n/N) for head n = 1 … N, where N is a power of two.

    Otherwise those of the next lower power P, then every second one of 2P, as the authors' code has it.
    (MPT's takes every second of the next higher power first.)
    """
    power = 2 ** int(np.log2(heads))
    first = 2.0 ** (-8.0 * np.arange(1, power + 1) / power)
    between = 2.0 ** (-8.0 * np.arange(1, 2 * power, 2) / (2 * power))
    return np.concatenate([first, between])[:heads]


class Alibi(Full):
    """Full attention less m · (i − j), with one fixed slope m per head.

    The paper adds the bias after the division by √H, and is causal only. It replaces positions; a model
    that also rotates does both.
    """

    name = "alibi"
    paper = "arXiv:2108.12409"
    query_streams = ("slope",)
    capability = Capability(
        refused={
            "bidirectional": "the paper's bias is of tokens that lie before; it gives none for those after.",
            "cross": "the distance i − j needs queries and keys on one time line.",
        }
    )

    def definition(self, q, k, v, slope):
        """softmax(q_i Kᵀ / √H + m · [−(i − 1), …, −2, −1, 0]) V  (section 3)."""
        i, j = jnp.arange(len(q))[:, None], jnp.arange(len(k))[None]
        scores = q @ k.T / jnp.sqrt(q.shape[-1]) - slope[:, None] * (i - j)
        return jax.nn.softmax(jnp.where(j <= i, scores, -jnp.inf), axis=-1) @ v

    def streams(self, x, layout, state=None, context=None):
        streams, moved = super().streams(x, layout, state, context)
        slope = jnp.asarray(slopes(self.geometry.heads), jnp.promote_types(jnp.float32, x.dtype))
        return streams | {"slope": jnp.broadcast_to(slope, streams["q"].shape[:3])}, moved

    def logit(self, s, query, key):
        return s - query["slope"][:, None] * (query["index"][:, None] - key["index"][None])
