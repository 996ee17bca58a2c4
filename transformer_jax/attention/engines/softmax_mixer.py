"""Mechanisms that are a softmax over a pattern: a variant names its pattern, this executes it."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from transformer_jax.attention.contract import Layout, State
from transformer_jax.attention.engines import softmax_cache
from transformer_jax.attention.engines.softmax import Streams, attend, merge
from transformer_jax.attention.engines.softmax_plan import Plan
from transformer_jax.attention.heads import HeadMixer


class SoftmaxMixer(HeadMixer):
    """softmax(q kᵀ / √H) v over the keys that a query `sees`.

    A variant gives `plan`, the blocks that are computed, and `sees`, the rule within them. Here the
    rule depends on the distance i − j alone, which is what lets new tokens attend to each other and
    to the state apart, and merge.
    """

    family = "softmax"

    def sees(self, i: jax.Array, j: jax.Array) -> jax.Array | None:
        """Does the query at i see the key at j? Broadcasts; None where every query sees every key."""
        raise NotImplementedError

    def plan(self, queries: int, keys: int) -> Plan:
        raise NotImplementedError

    def score(self, qk: jax.Array, query: Streams, key: Streams, shared: Streams) -> jax.Array:
        """q kᵀ / √H, and −inf where index or segment hide the key (`softmax.Score`)."""
        s = qk * self.geometry.head_size**-0.5
        if "index" in query:
            seen = self.sees(query["index"][:, None], key["index"][None])
            s = s if seen is None else jnp.where(seen, s, -jnp.inf)
        if "segment" in query:
            s = jnp.where(query["segment"][:, None] == key["segment"][None], s, -jnp.inf)
        return s

    def core(self, streams, layout, state):
        q, k, v = streams["q"], streams["k"], streams["v"]
        if state is None:
            return self.among(q, k, v, layout)[0], {}
        return self.continued(q, k, v, layout, state)

    def among(self, q: jax.Array, k: jax.Array, v: jax.Array, layout: Layout) -> tuple[jax.Array, jax.Array]:
        """Attention of the tokens to each other, or in cross-attention to a context: (o, lse)."""
        queries, keys = q.shape[1], k.shape[1]
        query, key = {"index": jnp.arange(queries)}, {"index": jnp.arange(keys)}
        if layout.segments is not None or layout.lengths is not None:
            segment = jnp.zeros_like(layout.positions) if layout.segments is None else layout.segments
            query["segment"] = segment
            key["segment"] = segment if layout.valid is None else jnp.where(layout.valid, segment, -1)
        return attend(q, k, v, self.plan(queries, keys), self.score, query=query, key=key)

    def continued(
        self, q: jax.Array, k: jax.Array, v: jax.Array, layout: Layout, state: State
    ) -> tuple[jax.Array, State]:
        """Attention of new tokens to each other and to the state, and the state with them in it."""
        raise NotImplementedError

    def core_flops(self, batch, length):
        return 4 * batch * self.geometry.heads * self.geometry.head_size * self.plan(length, length).pairs


class CachedMixer(SoftmaxMixer):
    """Keeps every key: a new token sees all earlier ones of its segment.

    The cache holds `geometry.length` tokens; those beyond it are lost, which nobody can check on
    traced lengths: the code that generates does.
    """

    state = "T"

    def score(self, qk, query, key, shared):
        s = super().score(qk, query, key, shared)
        if "before" in query:  # of the cache only what was there before the new tokens
            s = jnp.where(key["index"][None] < query["before"][:, None], s, -jnp.inf)
        return s

    def continued(self, q, k, v, layout, state):
        # Stored first and read afterwards, the cache is updated in place; read first, it would be copied.
        before = jnp.broadcast_to(state["count"][:, None], layout.positions.shape)
        query = {"segment": softmax_cache.segments(layout, state), "before": before}
        earlier = lambda first: first < jnp.max(before)
        state = softmax_cache.store(state, k, v, layout)
        cached = softmax_cache.attend_cache(q, query, state, self.score, needed=earlier)
        return merge([cached, self.among(q, k, v, layout)])[0], state

    def init_state(self, batch):
        self.capability.require("decoding", self.name)
        g = self.geometry
        return softmax_cache.empty(batch, g.kv_heads, g.head_size, g.length, g.dtype)


class RingMixer(SoftmaxMixer):
    """Keeps the last `window` keys in a ring."""

    window: int

    def continued(self, q, k, v, layout, state):
        query = {
            "index": softmax_cache.places(state, q.shape[1]),
            "segment": softmax_cache.segments(layout, state),
        }
        before = softmax_cache.attend_ring(q, query, state, self.score)
        o, _ = merge([before, self.among(q, k, v, layout)])
        return o, softmax_cache.store(state, k, v, layout, ring=True)

    def init_state(self, batch):
        self.capability.require("decoding", self.name)
        g = self.geometry
        return softmax_cache.empty(batch, g.kv_heads, g.head_size, self.window, g.dtype)
