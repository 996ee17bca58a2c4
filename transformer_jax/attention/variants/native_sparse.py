"""Native sparse attention: compressed blocks, selected blocks and a window (NSA, arXiv:2502.11089)."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax

from transformer_jax.attention.compression import Compression
from transformer_jax.attention.contract import Capability
from transformer_jax.attention.core import linear_flops
from transformer_jax.attention.engines.coarse_to_fine import CoarseToFineMixer
from transformer_jax.attention.engines.softmax_compressed import Grid
from transformer_jax.errors import BadInput


class NativeSparse(CoarseToFineMixer):
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
        },
        sequence="gathered",
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

    def projection_flops(self, batch, length):
        more = self.key_cmp, self.value_cmp, self.key_win, self.value_win, self.gate
        return super().projection_flops(batch, length) + linear_flops(batch * length, *more)
