"""BigBird: window, global and random blocks (arXiv:2007.14062, section 2 and appendix D)."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from transformer_jax.attention.contract import Buffer, Capability
from transformer_jax.attention.engines import softmax_cache
from transformer_jax.attention.engines.softmax_mixer import CachedMixer
from transformer_jax.attention.engines.softmax_plan import Blocks, Plan, Span, spans
from transformer_jax.errors import BadInput


class BigBird(CachedMixer):
    """A block of tokens sees `window_blocks` around it, the first `global_blocks`, and `random_blocks`
    others; the global blocks see everything. Causal: the same pattern, of which the past remains.

    The random blocks are a buffer (length / block, random_blocks), drawn for the model's longest
    sequence, so that neither a shorter sequence nor padding changes whom a token sees. Rows with
    fewer other blocks than that have −1. All heads have the same ones; in the authors' code each has its own,
    and its two global blocks are the first and the last (`transformers` sets all random blocks to the first
    one outside of training).
    """

    name = "bigbird"
    paper = "arXiv:2007.14062"
    time = "T"
    capability = Capability(
        refused={
            "cross": "its blocks pair a sequence with itself.",
            "packing": "its blocks and global tokens are counted from the start of a row, not of a segment.",
        },
        sequence="gathered",
        notes={"causal": "the bidirectional pattern, of which the past remains"},
    )
    small = {"block": 8, "random_blocks": 1, "global_blocks": 1}

    def __init__(
        self,
        geometry,
        *,
        block: int = 64,
        random_blocks: int = 3,
        global_blocks: int = 2,
        window_blocks: int = 3,
        rngs: nnx.Rngs,
    ):
        if block < 1 or geometry.length % block:
            raise BadInput(
                f"length={geometry.length} does not divide into blocks of block={block}: choose a block "
                f"that divides it, or another length."
            )
        if window_blocks < 1 or window_blocks % 2 == 0:
            raise BadInput(f"window_blocks={window_blocks} must be odd: a block and as many on either side.")
        if random_blocks < 0 or global_blocks < 0:
            raise BadInput("random_blocks and global_blocks count blocks: give 0 or more.")
        super().__init__(geometry, rngs=rngs)
        self.block, self.global_blocks, self.side = block, global_blocks, window_blocks // 2
        self.random = Buffer(self.draw(random_blocks, rngs.params()))

    def draw(self, count: int, key: jax.Array) -> jax.Array:
        """For every block `count` others that it does not see anyway, uniformly, without repetition."""
        blocks = self.geometry.length // self.block
        i, j = np.arange(blocks)[:, None], np.arange(blocks)[None]
        other = ~self.linked(i, j, [])
        chance, chosen = jax.lax.top_k(
            jnp.where(other, jax.random.uniform(key, (blocks, blocks), jnp.float32), -1), min(count, blocks)
        )
        return jnp.where(chance >= 0, chosen, -1).astype(jnp.int32)

    def linked(self, i, j, random):
        """Does block i see block j (Aᵢⱼ of section 2)? `random` are the random blocks of i."""
        seen = (i < self.global_blocks) | (j < self.global_blocks) | (abs(i - j) <= self.side)
        for drawn in random:
            seen = seen | (drawn == j)
        return seen

    def definition(self, q, k, v):
        """softmax(Q_i K_N(i)ᵀ / √d) V_N(i) over the out-neighbours N(i) of i (equation 1)."""
        i, j = jnp.arange(len(q))[:, None], jnp.arange(len(k))[None]
        drawn = self.random[...][i[:, 0] // self.block]
        seen = self.linked(i // self.block, j // self.block, jnp.split(drawn, drawn.shape[1], axis=1))
        if self.geometry.causal:
            seen = seen & (j <= i)
        scores = jnp.where(seen, q @ k.T / jnp.sqrt(q.shape[-1]), -jnp.inf)
        return jax.nn.softmax(scores, axis=-1) @ v

    def sees(self, i, j):
        """Within listed blocks only the direction matters."""
        return j <= i if self.geometry.causal else None

    def plan(self, queries, keys):
        blocks = -(-queries // self.block)
        ends = np.minimum(self.block * np.arange(1, blocks + 1), keys)
        first = min(self.global_blocks, blocks)
        stop = ends[:first] if self.geometry.causal else np.full(first, keys)
        groups: list[Span | Blocks] = list(spans(np.zeros_like(stop), stop, keys, self.block))
        rows = np.arange(first, blocks)
        if len(rows):
            groups.append(Blocks(rows=rows, lists=self.lists(rows, blocks), block=self.block))
        return Plan(queries=queries, keys=keys, block=min(self.block, queries), groups=groups)

    def lists(self, rows: np.ndarray, blocks: int) -> jax.Array:
        """Per row its global, window and random blocks, −1 in place of what is not there."""
        i = rows[:, None]
        near = i + np.arange(-self.side, 1 if self.geometry.causal else self.side + 1)
        near = np.where((near >= self.global_blocks) & (near < blocks), near, -1)
        wide = np.broadcast_to(np.arange(self.global_blocks), (len(rows), self.global_blocks))
        drawn = self.random[...][rows]
        drawn = jnp.where(drawn < (i if self.geometry.causal else blocks), drawn, -1)
        return jnp.concatenate([jnp.asarray(wide), jnp.asarray(near), drawn], axis=1).astype(jnp.int32)

    def score(self, qk, query, key, shared, sees=None):
        s = super().score(qk, query, key, shared, sees)
        drawn = [x[:, None] for name, x in query.items() if name.startswith("drawn")]
        if "block" in query:  # against the cache, which holds blocks that are not listed
            linked = self.linked(query["block"][:, None], key["index"][None] // self.block, drawn)
            s = jnp.where(linked, s, -jnp.inf)
        return s

    def continued(self, streams, layout, state):
        # The pattern depends on absolute places: everything is stored, then every token asks the cache.
        q, places = streams["q"], softmax_cache.places(state, layout.positions.shape[1])
        block = jnp.minimum(places // self.block, len(self.random[...]) - 1)
        drawn = jnp.moveaxis(self.random[...][block], -1, 0)
        query = {"index": places, "block": block, "segment": jnp.zeros_like(places)}
        query |= {f"drawn{n}": x for n, x in enumerate(drawn)}
        state = softmax_cache.store(state, {"k": streams["k"], "v": streams["v"]}, layout)
        needed = lambda first: jnp.any(self.linked(block, first // self.block, drawn))
        found = softmax_cache.attend_cache(q, query, state, self.score, piece=self.block, needed=needed)
        return found, state
