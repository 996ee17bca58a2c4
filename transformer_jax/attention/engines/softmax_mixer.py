"""Mechanisms that are a softmax over a pattern: a variant names its pattern, this executes it."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from transformer_jax.attention.contract import Capability, Layout, State
from transformer_jax.attention.core import repeat_heads
from transformer_jax.attention.engines import softmax_cache, softmax_kernel, softmax_sharded
from transformer_jax.attention.engines.interleaved import of_those_there
from transformer_jax.attention.engines.softmax import InParts, Streams, merge
from transformer_jax.attention.engines.softmax_plan import Plan
from transformer_jax.attention.heads import HeadMixer


def segments_of(layout: Layout, queries: int) -> softmax_sharded.Segments:
    """Segments of so many queries, the first, and of the keys, −1 where padded; None where all are of one."""
    if layout.segments is None and layout.lengths is None:
        return None
    segment = jnp.zeros_like(layout.positions) if layout.segments is None else layout.segments
    query = jnp.zeros((len(segment), queries), jnp.int32) if layout.segments is None else segment[:, :queries]
    return query, segment if layout.valid is None else jnp.where(layout.valid, segment, -1)


class SoftmaxMixer(HeadMixer):
    """softmax(q kᵀ / √H) v over the keys that a query `sees`.

    A variant gives `plan`, the blocks that are computed, and `sees`, which keys a query sees. Here the
    rule depends on the distance i − j alone, which is what lets new tokens attend to each other and
    to the state apart, and merge. What else it does to a score is its `logit`, and to a result, `normalized`.
    """

    family = "softmax"
    capability = Capability(sequence="parallel")
    query_streams: ClassVar[tuple[str, ...]] = ()
    key_streams: ClassVar[tuple[str, ...]] = ()
    """Streams (B, T, heads) that `logit` reads of queries and of keys. A cache keeps those of keys; a ring
    does not know either."""

    def sees(self, i: jax.Array, j: jax.Array) -> jax.Array | None:
        """Does the query at i see the key at j? Broadcasts; None where every query sees every key."""
        raise NotImplementedError

    def within(self, i: jax.Array, j: jax.Array) -> jax.Array | None:
        """The same among the keys that `plan` lists; here the rule itself."""
        return self.sees(i, j)

    def plan(self, queries: int, keys: int) -> Plan:
        raise NotImplementedError

    def score(
        self, qk: jax.Array, query: Streams, key: Streams, shared: Streams, sees: Callable | None = None
    ) -> jax.Array:
        """The logit of q kᵀ / √H; −inf where the rule `sees` or a segment hide the key (`softmax.Score`)."""
        s = self.logit(qk * self.scale, query, key)
        if "index" in query:
            seen = (sees or self.sees)(query["index"][:, None], key["index"][None])
            s = s if seen is None else jnp.where(seen, s, -jnp.inf)
        return softmax_sharded.within_segments(s, query, key)

    @property
    def scale(self) -> float:
        """What q kᵀ is multiplied by."""
        return self.key_size**-0.5

    def logit(self, s: jax.Array, query: Streams, key: Streams) -> jax.Array:
        """What the softmax is taken of, from the scaled products s (t, s) of a head; here they themselves."""
        return s

    def normalized(self, o: jax.Array, lse: jax.Array, streams: Streams) -> jax.Array:
        """The result, from that of the softmax over keys and the log of its denominator."""
        return o

    def core(self, streams, layout, state):
        if state is None:
            o = self.by_kernel(streams, layout)
            return self.normalized(*self.among(streams, layout), streams) if o is None else o, {}
        (o, lse), state = self.continued(streams, layout, state)
        return self.normalized(o, lse, streams), state

    soft_cap: float | None = None
    """The bound of scores, where that is all that `logit` does to them."""

    @property
    def no_kernel(self) -> str:
        """Why no kernel can do all of it, as a clause; empty where one may."""
        kind = type(self)
        if kind.among is not SoftmaxMixer.among:
            return "it attends in several parts"
        if kind.logit is not SoftmaxMixer.logit and self.soft_cap is None:
            return "it does more to a score than to scale and to cap it"
        if kind.normalized is not SoftmaxMixer.normalized:
            return "it reads the denominator of its softmax"
        return ""

    def by_kernel(self, streams: Streams, layout: Layout) -> jax.Array | None:
        """What `core` gives without a state, from a kernel of the device; None where none can."""
        q, k, v = streams["q"], streams["k"], streams["v"]
        if self.no_kernel:
            softmax_kernel.refuse(self.no_kernel)
            return None
        place: Any = np.zeros((1, 1), int)
        everything = self.within(place, place) is None
        plan = self.plan(q.shape[1], k.shape[1])
        # Padding is on the right: a causal query that is none sees none.
        padded_only = layout.segments is None and softmax_sharded.after_none(plan)
        segments = None if padded_only else segments_of(layout, q.shape[1])
        return softmax_kernel.attend(
            *(q, k, v, segments, plan),
            rule=None if everything else self.within,
            by_distance=not isinstance(self, StoredMixer),
            scale=self.scale,
            soft_cap=self.soft_cap,
        )

    def read_by_score(self, streams: Streams) -> tuple[Streams, Streams]:
        """What `logit` reads of queries, with a head of its own for each, and of keys."""
        heads = streams["q"].shape[2]
        query = {name: repeat_heads(streams[name], heads) for name in self.query_streams}
        return query, {name: streams[name] for name in self.key_streams}

    def among(
        self,
        streams: Streams,
        layout: Layout,
        *,
        plan: Plan | None = None,
        sees: Callable | None = None,
        places: np.ndarray | None = None,
        step: int = 1,
    ) -> tuple[jax.Array, jax.Array]:
        """Attention of the tokens to each other, or in cross-attention to a context: (o, lse).

        A pattern of several parts gives for each its `plan`, the rule that it `sees`, and which keys, by
        their `places`, take part at all. Where a query sees only keys a multiple of `step` away, the plan is
        that of every step-th token. Queries may be those of the first tokens alone.
        """
        q, k, v = streams["q"], streams["k"], streams["v"]
        query, key = self.read_by_score(streams)
        query |= {"index": jnp.arange(q.shape[1])}
        key |= {"index": jnp.arange(k.shape[1]), "k": k, "v": v}
        of_query, of_key = softmax_sharded.segment_streams(segments_of(layout, q.shape[1]))
        query, key = query | of_query, key | of_key
        if places is not None:
            key = {name: jnp.take(x, places, axis=min(x.ndim - 1, 1)) for name, x in key.items()}
        k, v = key.pop("k"), key.pop("v")
        plan = plan or self.plan(-(-q.shape[1] // step), -(-k.shape[1] // step))
        score = partial(self.score, sees=sees or self.within)
        return self.attend(q, k, v, plan, score, query=query, key=key, step=step)

    def attend(
        self,
        q: jax.Array,
        k: jax.Array,
        v: jax.Array,
        plan: Plan,
        score: Callable,
        *,
        query: Streams,
        key: Streams,
        step: int = 1,
    ) -> tuple[jax.Array, jax.Array]:
        """The execution of `among`: the blocks of `plan`, on one device or on many."""
        computation = InParts(of_those_there(score))
        return softmax_sharded.attend(q, k, v, plan, computation, query=query, key=key, step=step)

    def continued(
        self, streams: Streams, layout: Layout, state: State
    ) -> tuple[tuple[jax.Array, jax.Array], State]:
        """Attention of new tokens to each other and to the state, and the state with them in it."""
        raise NotImplementedError

    def core_flops(self, batch, length):
        g, pairs = self.geometry, self.plan(length, length).pairs
        return 2 * batch * g.heads * (self.key_size + g.head_size) * pairs


class CachedMixer(SoftmaxMixer):
    """Keeps every key: a new token sees all earlier ones of its segment.

    The cache holds `geometry.length` tokens; those beyond it are lost, which nobody can check on
    traced lengths: the code that generates does.
    """

    state = "T"

    def score(self, qk, query, key, shared, sees=None):
        s = super().score(qk, query, key, shared, sees)
        if "before" in query:  # of the cache only what was there before the new tokens
            s = jnp.where(key["index"][None] < query["before"][:, None], s, -jnp.inf)
        return s

    def continued(self, streams, layout, state):
        past, state = self.past(streams, layout, state)
        return merge([past, self.among(streams, layout)]), state

    def past(
        self, streams: Streams, layout: Layout, state: State
    ) -> tuple[tuple[jax.Array, jax.Array], State]:
        """Attention of new tokens to the state alone, and the state with them in it."""
        # Stored first and read afterwards, the cache is updated in place; read first, it would be copied.
        before = jnp.broadcast_to(state["count"][:, None], layout.positions.shape)
        query, key = self.read_by_score(streams)
        query |= softmax_cache.stands(layout, state) | {"before": before}
        earlier = lambda first: first < jnp.max(before)
        kept = {name: streams[name] for name in ("k", "v") if name in state}
        state = softmax_cache.store(state, kept | key, layout)
        found = softmax_cache.attend_cache(streams["q"], query, state, self.score, needed=earlier, read=key)
        return found, state

    def init_state(self, batch):
        self.capability.require("decoding", self.name)
        g = self.geometry
        return softmax_cache.empty(batch, g.kv_heads, g.head_size, g.length, g.dtype, self.key_size)


class StoredMixer(CachedMixer):
    """A cache for rules that depend on places: tokens are stored, then ask the cache.

    Decoding reads every key, those that the pattern leaves out as well.
    """

    def continued(self, streams, layout, state):
        query, key = self.read_by_score(streams)
        query |= softmax_cache.stands(layout, state)
        state = softmax_cache.store(state, {"k": streams["k"], "v": streams["v"]} | key, layout)
        return softmax_cache.attend_cache(streams["q"], query, state, self.score, read=key), state


class RingMixer(SoftmaxMixer):
    """Keeps the last `window` keys in a ring."""

    window: int

    @property
    def slots(self) -> int:
        """Of the ring: how far back a token may see, itself included."""
        return self.window

    def continued(self, streams, layout, state):
        before = softmax_cache.attend_ring(
            streams["q"], softmax_cache.stands(layout, state), state, self.score
        )
        o = merge([before, self.among(streams, layout)])
        return o, softmax_cache.store(state, {"k": streams["k"], "v": streams["v"]}, layout, ring=True)

    def init_state(self, batch):
        self.capability.require("decoding", self.name)
        g = self.geometry
        return softmax_cache.empty(batch, g.kv_heads, g.head_size, self.slots, g.dtype, self.key_size)
