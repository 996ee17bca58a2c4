"""Top-k attention: each query keeps its largest scores (arXiv:2106.06899)."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax

from transformer_jax.attention.contract import Capability
from transformer_jax.attention.core import repeat_heads
from transformer_jax.attention.engines import softmax_cache
from transformer_jax.attention.engines.softmax_chosen import best, by_chunks, padded_length
from transformer_jax.attention.engines.softmax_mixer import CachedMixer
from transformer_jax.attention.engines.softmax_rows import accurate
from transformer_jax.errors import BadInput


class TopK(CachedMixer):
    """The softmax over the `kept` largest scores of a query, of those that it may see; of equal scores the
    earlier ones.

    All T² scores are computed, in the forward pass alone, some queries after others: memory is T·kept. No
    gradient goes through the choice. The scale changes no choice, and the weights of the kept add up to 1.
    Keys and values that are kept are gathered for every query.
    """

    name = "top_k"
    paper = "arXiv:2106.06899"
    time = "T²"
    small = {"kept": 6}
    capability = Capability(
        sequence="gathered", notes={"causal": "the largest scores among those up to the token itself"}
    )

    def __init__(self, geometry, *, kept: int = 128, rngs: nnx.Rngs):
        if kept < 1:
            raise BadInput(f"top_k kept={kept} counts the keys that a query keeps: give 1 or more.")
        super().__init__(geometry, rngs=rngs)
        self.kept = kept

    def definition(self, q, k, v, chosen=None):
        """Section "Efficient Transformer through Top-k Attention": softmax(top-k(Q Kᵀ / √H)) V, where top-k
        leaves the k largest entries of each row and sets the others to −∞."""
        i, j = jnp.arange(len(q))[:, None], jnp.arange(len(k))[None]
        s = q @ k.T / jnp.sqrt(q.shape[1])
        if self.geometry.causal:
            s = jnp.where(j <= i, s, -jnp.inf)
        if chosen is None:
            rank = jnp.argsort(jnp.argsort(-s, axis=1, stable=True), axis=1)
            largest = rank < self.kept
        else:
            largest = (chosen[:, :, None] == j[None]).any(axis=1)
        return jax.nn.softmax(jnp.where(largest, s, -jnp.inf), axis=-1) @ v

    def selection(self, streams, layout):
        q, k = streams["q"], streams["k"]
        index, key_index = (jnp.broadcast_to(jnp.arange(x.shape[1]), x.shape[:2]) for x in (q, k))
        segment, key_segment = (jnp.zeros(x.shape[:2], jnp.int32) for x in (q, k))
        if layout.segments is not None:
            segment = key_segment = layout.segments
        if layout.valid is not None:
            key_segment = jnp.where(layout.valid, key_segment, -1)
        query, key = {"index": index, "segment": segment}, {"index": key_index, "segment": key_segment}
        return {"chosen": self.choose(q, k, query, key)}

    def choose(self, q, k, query, key) -> jax.Array:
        """(B, T, N, kept), the keys (B, S, K, H) that each query keeps; −1 where it sees fewer."""
        q, k = lax.stop_gradient((q, k))

        def some(q, index, segment):
            grouped = q.reshape(*q.shape[:2], k.shape[2], -1, q.shape[3])
            s = jnp.einsum("btkgh,bskh->btkgs", grouped, k, preferred_element_type=accurate(k.dtype))
            seen = segment[..., None] == key["segment"][:, None]
            if self.geometry.causal:
                seen &= key["index"][:, None] <= index[..., None]
            return best(jnp.where(seen[:, :, None], s.reshape(*q.shape[:3], -1), -jnp.inf), self.kept)

        return by_chunks(some, q.shape[1], q, query["index"], query["segment"])

    def attend(self, q, k, v, chosen) -> jax.Array:
        """The softmax over the keys `chosen` (B, T, N, kept)."""
        k, v = (repeat_heads(x, q.shape[2]) for x in (k, v))
        of_head = jax.vmap(jax.vmap(lambda x, at: x[at], (1, 1), 1))

        def some(q, chosen):
            at = jnp.maximum(chosen, 0)
            s = jnp.einsum("btnh,btnsh->btns", q, of_head(k, at), preferred_element_type=accurate(k.dtype))
            s = jnp.where(chosen < 0, -jnp.inf, s * self.scale)
            top = lax.stop_gradient(jnp.max(s, axis=-1, keepdims=True))
            p = jnp.exp(s - jnp.where(jnp.isfinite(top), top, 0))
            total = jnp.sum(p, axis=-1, keepdims=True)  # at least 1 where anything is seen
            p = (p / jnp.where(total > 0, total, 1)).astype(v.dtype)
            return jnp.einsum("btns,btnsh->btnh", p, of_head(v, at), preferred_element_type=accurate(v.dtype))

        return by_chunks(some, q.shape[1], q, chosen)

    def core(self, streams, layout, state):
        q, k, v = (streams[name] for name in "qkv")
        if state is None:
            chosen = (streams if "chosen" in streams else self.selection(streams, layout))["chosen"]
            return self.attend(q, k, v, chosen), {}
        query = softmax_cache.stands(layout, state)
        state = softmax_cache.store(state, {"k": k, "v": v}, layout)
        k, v = (jnp.moveaxis(state[name], -1, 1) for name in "kv")
        slots = jnp.broadcast_to(jnp.arange(k.shape[1]), k.shape[:2])
        chosen = self.choose(q, k, query, {"index": slots, "segment": state["segment"]})
        return self.attend(q, k, v, chosen), state

    def core_flops(self, batch, length):
        g = self.geometry
        each = 2 * length + 4 * min(self.kept, length)
        return batch * g.heads * g.head_size * padded_length(length) * each
