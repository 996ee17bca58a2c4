"""Native sparse attention: compressed blocks, selected blocks and a window (NSA, arXiv:2502.11089)."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax

from transformer_jax.attention.compression import Compression
from transformer_jax.attention.contract import Capability
from transformer_jax.attention.core import linear_flops, repeat_heads
from transformer_jax.attention.engines import softmax_cache
from transformer_jax.attention.engines.softmax import merge
from transformer_jax.attention.engines.softmax_chosen import attend_chosen
from transformer_jax.attention.engines.softmax_compressed import Grid
from transformer_jax.attention.engines.softmax_mixer import CachedMixer
from transformer_jax.attention.engines.softmax_plan import band
from transformer_jax.errors import BadInput


class NativeSparse(CachedMixer):
    """A gated sum of three attentions: to compressed blocks, to the blocks that those select, to a window.

    Each has keys and values of its own. φ is a learned MLP with learned places within a block; it is given
    the keys as they are placed (rotated). A compressed block is seen once it is over. Of the `selected`
    blocks the first, a token's own and the one before it are always there; the others are those that the
    compressed attention gives most, summed over the query heads of a key-value head. No gradient goes through
    the choice. The gates are a sigmoid of a linear map of x. Choosing repeats the compressed scores, and
    decoding compresses the cache anew, so it reads every key.
    """

    name = "native_sparse"
    paper = "arXiv:2502.11089"
    time = "T·(T/d + n·l + w)"
    no_matrix = "each of its three attentions has values of its own."
    small = {"compress": 4, "stride": 2, "block": 4, "selected": 4, "window": 6}
    capability = Capability(
        refused={
            "bidirectional": "its blocks and its window are those that lie before a token.",
            "cross": "a context holds no block and no window of the token's own.",
            "packing": "its blocks are counted from the start of a row, not of a segment.",
        }
    )

    def __init__(
        self,
        geometry,
        *,
        compress: int = 32,
        stride: int = 16,
        block: int = 64,
        selected: int = 16,
        window: int = 512,
        rngs: nnx.Rngs,
    ):
        if stride < 1 or compress < stride or compress % stride or block % stride or compress > block:
            raise BadInput(
                f"native_sparse stride={stride} must divide compress={compress} and block={block}, and "
                f"compress must not exceed block."
            )
        if selected < 3 or window < 1:
            raise BadInput(
                f"native_sparse selected={selected} has three blocks that are always there, and "
                f"window={window} the token itself: give 3 and 1 at least."
            )
        super().__init__(geometry, rngs=rngs)
        g, keys = geometry, geometry.kv_heads * geometry.head_size
        self.grid, self.window = Grid(compress, stride, block, selected), window
        self.key_cmp, self.value_cmp, self.key_win, self.value_win = (
            self.linear(g.width, keys, rngs) for _ in range(4)
        )
        self.gate = self.linear(g.width, 3 * g.heads, rngs)
        self.phi_k, self.phi_v = (Compression(compress, g.head_size, rngs=rngs) for _ in range(2))

    def streams(self, x, layout, state=None, context=None):
        """`group` (B, T, K, G, H) has the queries that share a key-value head, for they choose together."""
        streams, moved = super().streams(x, layout, state, context)
        g, heads = self.geometry, (*x.shape[:2], self.geometry.kv_heads, -1)
        for part in ("cmp", "win"):
            k, v = getattr(self, f"key_{part}")(x), getattr(self, f"value_{part}")(x)
            streams[f"k_{part}"] = self.placed(k.reshape(heads), layout.positions)
            streams[f"v_{part}"] = v.reshape(heads)
        group = lax.stop_gradient(streams["q"]).reshape(*heads, g.head_size)
        gates = jax.nn.sigmoid(self.gate(x)).reshape(*x.shape[:2], g.heads, 3)
        return streams | {"group": group, "gates": gates}, moved

    def definition(self, q, k, v, k_cmp, v_cmp, k_win, v_win, group, gates, chosen=None):
        """Equation 5: o = Σ_c g_c Attn(q, K̃_c, Ṽ_c), c of cmp (equation 7), slc (8 to 12) and win."""
        l, d, size, n = (getattr(self.grid, name) for name in ("compress", "stride", "block", "selected"))
        i, j = jnp.arange(len(q))[:, None], jnp.arange(len(q))[None]
        own, blocks = i // size, jnp.arange(-(-len(q) // size))[None]
        begin = d * jnp.arange(max(0, (len(q) - l) // d + 1))[None]
        tokens = begin.T + jnp.arange(l)[None]
        K, V, over = self.phi_k(k_cmp[tokens]), self.phi_v(v_cmp[tokens]), begin + l - 1 <= i

        def softmax(q, k, seen):  # zeros where nothing is seen
            s = jnp.where(seen, q @ k.T / jnp.sqrt(q.shape[1]), -jnp.inf)
            p = jnp.exp(s - jnp.max(s, axis=1, keepdims=True, initial=-1e30))
            return p / jnp.where(seen.any(axis=1, keepdims=True), p.sum(axis=1, keepdims=True), 1)

        if chosen is None:
            # Σ_m Σ_n p^cmp[(l'/d) j + m − n] counts every stride that a compressed block shares with block j.
            first, last = jnp.maximum(begin, size * blocks.T), jnp.minimum(begin + l, size * (blocks.T + 1))
            shared = jnp.maximum(last - first, 0) // d
            p = sum(softmax(group[:, h], K, over) for h in range(group.shape[1])) @ shared.T
            always = (blocks == 0) | (blocks == own) | (blocks == own - 1)
            p = jnp.where(blocks <= own, jnp.where(always, jnp.inf, p), -jnp.inf)
            selected = jnp.argsort(jnp.argsort(-p, axis=1, stable=True), axis=1) < n
        else:
            selected = (chosen[:, :, None] == blocks[None]).any(axis=1)
        o_cmp = softmax(q, K, over) @ V
        o_slc = softmax(q, k, (selected @ (j // size == blocks.T)) & (j <= i)) @ v
        o_win = softmax(q, k_win, self.near(i, j)) @ v_win
        return gates[:, :1] * o_cmp + gates[:, 1:2] * o_slc + gates[:, 2:] * o_win

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

    def projection_flops(self, batch, length):
        more = self.key_cmp, self.value_cmp, self.key_win, self.value_win, self.gate
        return super().projection_flops(batch, length) + linear_flops(batch * length, *more)
