"""Locality-sensitive hashing attention: tokens of like hashes meet (Reformer, arXiv:2001.04451)."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax

from transformer_jax.attention.contract import Buffer, Capability
from transformer_jax.attention.core import linear_flops, repeat_heads
from transformer_jax.attention.engines.softmax import attend, merge
from transformer_jax.attention.engines.softmax_chosen import take
from transformer_jax.attention.engines.softmax_plan import Blocks, Plan
from transformer_jax.attention.engines.softmax_rows import accurate
from transformer_jax.attention.gates import unit
from transformer_jax.attention.heads import HeadMixer
from transformer_jax.errors import BadInput


class Reformer(HeadMixer):
    """Tokens are sorted by the hash of their query and cut into chunks; each chunk sees itself and the one
    before it. So in several rounds of other hashes, whose union is one softmax.

    Keys are the queries made unit vectors, and scores have no factor 1/√H, as in `transformers`. The first
    chunk sees the last one of its round, where the paper's formula has nothing before it. A chunk sees all
    of both, whatever their buckets. A key that is met in several rounds counts once, as in the paper's
    appendix; some codes count it in each. A token sees itself only where it sees nothing else. The random
    rotations are drawn once, for each head and round. `buckets` is fixed; the paper has 2·T/chunk of them.
    """

    name = "reformer"
    family = "softmax"
    paper = "arXiv:2001.04451"
    time = "T·(r·m + log T)"
    small = {"chunk": 6, "buckets": 4, "rounds": 2}
    capability = Capability(
        refused={
            "causal": "chunks are cut from all tokens in sorted order, so later tokens decide which earlier "
            "ones share a chunk: it would leak the future.",
            "cross": "its keys are its queries.",
            "packing": "chunks are cut from all tokens of a row, so they would mix documents.",
            "decoding": "each new token moves the borders of the chunks of all before it.",
        },
        sequence="gathered",
    )

    def __init__(self, geometry, *, chunk: int = 64, buckets: int = 64, rounds: int = 4, rngs: nnx.Rngs):
        if buckets < 2 or buckets % 2:
            raise BadInput(f"reformer buckets={buckets} are pairs of directions: give an even number.")
        if chunk < 1 or rounds < 1:
            raise BadInput(f"reformer chunk={chunk} and rounds={rounds} must be at least 1.")
        super().__init__(geometry, rngs=rngs)
        del self.key  # keys are queries
        self.chunk, self.buckets, self.rounds = chunk, buckets, rounds
        shape = geometry.heads, geometry.head_size, rounds, buckets // 2
        self.rotations = Buffer(jax.random.normal(rngs.params(), shape))

    def streams(self, x, layout, state=None, context=None):
        g = self.geometry
        q = self.query(x).reshape(*x.shape[:2], g.heads, g.head_size)
        v = self.value(x).reshape(*x.shape[:2], g.kv_heads, g.head_size)
        return {"q": self.placed(q, layout.positions), "v": v}, {}

    def weights(self):
        return {"rotations": self.rotations[...]}

    def definition(self, q, v, rotations, buckets=None):
        """o_i = Σ_j softmax(q_i · k_j) v_j over the union of P̃_i⁽ʳ⁾ = {j : ⌊s_i/m⌋ − 1 ≤ ⌊s_j/m⌋ ≤ ⌊s_i/m⌋},
        s the places after sorting by h(q) = argmax [q R; −q R], and k = q / |q| (equations 3 to 6)."""
        if buckets is None:
            turned = jnp.einsum("th,hri->tri", q, rotations.astype(q.dtype))
            buckets = jnp.argmax(jnp.concatenate([turned, -turned], axis=-1), axis=-1)
        place = jnp.argsort(jnp.argsort(buckets, axis=0, stable=True), axis=0).T  # (r, t)
        chunk = place // self.chunk
        i, j = chunk[:, :, None], chunk[:, None]
        seen = ((j == i) | (j == (i - 1) % -(-len(q) // self.chunk))).any(axis=0)
        itself = jnp.eye(len(q), dtype=bool)
        scores = jnp.where(itself, -1e5, q @ unit(q).T)
        return jax.nn.softmax(jnp.where(seen, scores, -jnp.inf), axis=-1) @ v

    def selection(self, streams, layout):
        """h(q), (B, T, N, r)."""
        q = lax.stop_gradient(streams["q"])
        exact = accurate(q.dtype)
        turned = jnp.einsum("btnh,nhri->btnri", q.astype(exact), self.rotations[...].astype(exact))
        return {"buckets": jnp.argmax(jnp.concatenate([turned, -turned], axis=-1), axis=-1).astype(jnp.int32)}

    def score(self, qk, query, key, shared):
        """Less the log of how many rounds the pair meets in, so that together they count it once."""
        rounds = range(self.rounds)
        pairs = ((query[f"chunk{r}"], query[f"before{r}"], key[f"chunk{r}"]) for r in rounds)
        meet = sum(((k[None] == q[:, None]) | (k[None] == b[:, None])).astype(qk.dtype) for q, b, k in pairs)
        s = jnp.where(query["index"][:, None] == key["index"][None], -1e5, qk)
        return jnp.where(meet > 0, s - jnp.log(jnp.maximum(meet, 1)), -jnp.inf)

    def core(self, streams, layout, state):
        q, k, v = streams["q"], unit(streams["q"]), repeat_heads(streams["v"], self.geometry.heads)
        length = q.shape[1]
        buckets = streams["buckets"] if "buckets" in streams else self.selection(streams, layout)["buckets"]
        lengths = jnp.full(len(q), length) if layout.lengths is None else layout.lengths
        valid = jnp.broadcast_to((jnp.arange(length)[None] < lengths[:, None])[..., None], q.shape[:3])
        chunks = jnp.maximum(-(-lengths // self.chunk), 1).astype(jnp.int32)
        query, key, orders, places = {}, {}, [], []
        for r in range(self.rounds):
            order = jnp.argsort(jnp.where(valid, buckets[..., r], self.buckets), axis=1, stable=True)
            place = jnp.argsort(order, axis=1)
            chunk = (place // self.chunk).astype(jnp.int32)
            key[f"chunk{r}"] = jnp.where(valid, chunk, -1)
            query[f"chunk{r}"], query[f"before{r}"] = chunk, (chunk - 1) % chunks[:, None, None]
            orders.append(order)
            places.append(place)
        query["index"] = key["index"] = jnp.broadcast_to(jnp.arange(length)[None, :, None], q.shape[:3])
        plan, parts = self.plan(length, chunks), []
        for order, place in zip(orders, places, strict=True):
            q_, k_, v_, query_, key_ = jax.tree.map(lambda x, at=order: take(x, at), (q, k, v, query, key))
            found = attend(q_, k_, v_, plan, self.score, query=query_, key=key_)
            parts.append(jax.tree.map(lambda x, at=place: take(x, at), found))
        return merge(parts)[0], {}

    def plan(self, length: int, chunks: jax.Array) -> Plan:
        """Each chunk with the one before it; the first one of a row with the last of its `chunks` (B,)."""
        rows = np.arange(-(-length // self.chunk))
        shape = len(chunks), self.geometry.heads, len(rows)
        before = jnp.broadcast_to(jnp.asarray(rows - 1, jnp.int32), shape)
        last = jnp.where(chunks > 1, chunks - 1, -1)[:, None]
        before = before.at[:, :, 0].set(jnp.broadcast_to(last, before.shape[:2]))
        lists = jnp.stack([jnp.broadcast_to(jnp.asarray(rows, jnp.int32), before.shape), before], axis=-1)
        group = Blocks(rows=rows, lists=lists, block=self.chunk)
        return Plan(queries=length, keys=length, block=self.chunk, groups=[group])

    def core_flops(self, batch, length):
        g, pairs = self.geometry, 2 * (-(-length // self.chunk)) * self.chunk**2
        hashing = length * self.buckets
        return batch * g.heads * g.head_size * self.rounds * (hashing + 4 * pairs)

    def projection_flops(self, batch, length):
        return linear_flops(batch * length, self.query, self.value, self.out)
