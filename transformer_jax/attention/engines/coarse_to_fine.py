"""Three attentions of every token: to compressed blocks, to the blocks that those select, to a window."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp

from transformer_jax.attention.compression import Compression
from transformer_jax.attention.core import repeat_heads
from transformer_jax.attention.engines import softmax_cache
from transformer_jax.attention.engines.softmax import merge
from transformer_jax.attention.engines.softmax_chosen import attend_chosen
from transformer_jax.attention.engines.softmax_compressed import Grid
from transformer_jax.attention.engines.softmax_mixer import CachedMixer
from transformer_jax.attention.engines.softmax_plan import band


class CoarseToFineMixer(CachedMixer):
    """A variant gives the streams q, k, v, those of the compressed blocks (k_cmp, v_cmp) and of the window
    (k_win, v_win), each with K heads; `group` (B, T, K, G, H), the queries that choose together; and
    `gates` (B, T, N, 3), which weigh the three results.
    """

    grid: Grid
    window: int
    phi_k: Compression
    phi_v: Compression

    def sees(self, i, j):
        """A compressed block stands where its last token does."""
        return j <= i

    def near(self, i, j):
        return (j <= i) & (i - j < self.window)

    def score(self, qk, query, key, shared, sees=None):
        s = super().score(qk, query, key, shared, sees)
        if "chosen" in query:  # against the cache, which holds blocks that were not
            block = key["index"][None] // self.grid.block
            s = jnp.where((query["chosen"][:, :, None] == block[None]).any(axis=1), s, -jnp.inf)
        return s

    def compressed(self, k: jax.Array, v: jax.Array) -> tuple[jax.Array, jax.Array]:
        return self.phi_k(self.grid.cut(k)), self.phi_v(self.grid.cut(v))

    def selection(self, streams, layout):
        k, length = self.phi_k(self.grid.cut(streams["k_cmp"])), layout.positions.shape[1]
        return {"chosen": self.grid.choose(self.scale * streams["group"], jnp.arange(length), k, length)}

    def window_plan(self, length):
        return band(length, length, before=self.window - 1, after=0)

    def near_tokens(self, streams, layout):
        streams = {"q": streams["q"], "k": streams["k_win"], "v": streams["v_win"]}
        plan = self.window_plan(layout.positions.shape[1])
        return self.among(streams, layout, plan=plan, sees=self.near)

    def core(self, streams, layout, state):
        if state is not None:
            return self.continued(streams, layout, state)
        grid, q, length = self.grid, streams["q"], layout.positions.shape[1]
        place = {"index": jnp.arange(length)}
        k, v = self.compressed(streams["k_cmp"], streams["v_cmp"])
        chosen = streams.get("chosen")
        if chosen is None:
            chosen = grid.choose(self.scale * streams["group"], place["index"], k, length)
        tokens = streams["k"], streams["v"]
        coarse = grid.attend(q, place["index"], k, v, grid.plan(length), self.score)
        fine, _ = attend_chosen(q, *tokens, chosen, grid.block, self.score, query=place, key=place)
        return self.gated(streams, coarse, fine, self.near_tokens(streams, layout)[0]), {}

    def continued(self, streams, layout, state):
        grid, q, ring, length = self.grid, streams["q"], state["ring"], self.geometry.length
        place = softmax_cache.stands(layout, ring)
        new = {name: streams[name] for name in ("k", "v", "k_cmp", "v_cmp")}
        cache = softmax_cache.store(state["cache"], new, layout)
        k, v = self.compressed(*(jnp.moveaxis(cache[name], -1, 1) for name in ("k_cmp", "v_cmp")))
        coarse = grid.attend(q, place["index"], k, v, band(q.shape[1], k.shape[1]), self.score)
        chosen = grid.choose(self.scale * streams["group"], place["index"], k, length)
        query = place | {"chosen": repeat_heads(chosen, q.shape[2])}
        needed = lambda first: jnp.any(chosen == first // grid.block)
        fine, _ = softmax_cache.attend_cache(q, query, cache, self.score, piece=grid.block, needed=needed)
        before = softmax_cache.attend_ring(q, place, ring, partial(self.score, sees=self.near))
        near, _ = merge([before, self.near_tokens(streams, layout)])
        ring = softmax_cache.store(ring, {"k": streams["k_win"], "v": streams["v_win"]}, layout, ring=True)
        return self.gated(streams, coarse, fine, near), {"cache": cache, "ring": ring}

    def gated(self, streams, *parts):
        return sum(streams["gates"][..., n : n + 1] * o for n, o in enumerate(parts))

    def init_state(self, batch):
        g, cache = self.geometry, super().init_state(batch)
        cache |= {f"{name}_cmp": jnp.zeros_like(cache[name]) for name in "kv"}
        ring = softmax_cache.empty(batch, g.kv_heads, g.head_size, self.window, g.dtype)
        return {"cache": cache, "ring": ring}

    def core_flops(self, batch, length):
        g = self.geometry
        products = self.grid.products(length) + 2 * self.window_plan(length).pairs
        compressing = 2 * self.phi_k.flops(self.grid.compressed(length))
        return batch * (2 * g.heads * g.head_size * products + g.kv_heads * compressing)
