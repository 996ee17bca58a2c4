"""Routing attention: queries and keys meet in clusters (Routing Transformer, arXiv:2003.05997)."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax

from transformer_jax.attention.contract import Buffer, Capability
from transformer_jax.attention.core import repeat_heads
from transformer_jax.attention.engines.softmax import attend
from transformer_jax.attention.engines.softmax_chosen import best, take
from transformer_jax.attention.engines.softmax_plan import Plan, own_blocks
from transformer_jax.attention.engines.softmax_rows import accurate
from transformer_jax.attention.gates import unit
from transformer_jax.attention.heads import HeadMixer
from transformer_jax.errors import BadInput


class Routing(HeadMixer):
    """Each centroid takes the `members` queries and the `members` keys nearest to it, and these queries
    attend to these keys.

    Queries and keys are normalized, without a learned scale; scores are divided by √H. The paper has
    T/clusters members. A token's output is the mean over the clusters that take its query, and 0 where none
    does. All heads route, each with centroids of its own; the paper gives half of them to a window. No
    gradient goes through the choice: the centroids are a buffer, which each training step moves towards the
    queries and keys of its batch that are nearest by angle, and which nothing else moves.
    """

    name = "routing"
    family = "softmax"
    paper = "arXiv:2003.05997"
    time = "T·c + c·w²"
    small = {"clusters": 4, "members": 20}
    capability = Capability(
        refused={
            "causal": "a centroid takes the nearest of all tokens, so later ones decide which earlier ones "
            "it takes: it would leak the future.",
            "cross": "its clusters take as many queries as keys of one sequence.",
            "packing": "a centroid takes the nearest of all tokens of a row, so documents would compete.",
            "decoding": "each new token may push earlier ones out of a cluster, and so change their outputs.",
        },
        sequence="gathered",
    )

    def __init__(
        self, geometry, *, clusters: int = 16, members: int = 128, decay: float = 0.999, rngs: nnx.Rngs
    ):
        if clusters < 1 or members < 1:
            raise BadInput(f"routing clusters={clusters} and members={members} must be at least 1.")
        if not 0 <= decay <= 1:
            raise BadInput(f"routing decay={decay} must lie between 0 and 1, where the centroids stay.")
        super().__init__(geometry, rngs=rngs)
        self.clusters, self.members, self.decay = clusters, members, decay
        shape = geometry.heads, clusters, geometry.head_size
        self.centroids = Buffer(jax.random.normal(rngs.params(), shape))

    def streams(self, x, layout, state=None, context=None):
        streams, moved = super().streams(x, layout, state, context)
        normal = lambda x: jax.nn.standardize(x.astype(accurate(x.dtype)), axis=-1).astype(x.dtype)
        return streams | {"q": normal(streams["q"]), "k": normal(streams["k"])}, moved

    def weights(self):
        return {"centroids": self.centroids[...]}

    def definition(self, q, k, v, centroids, query_members=None, key_members=None):
        """Algorithm 1: per centroid μ the w largest of Q μ and of K μ, softmax(Q' K'ᵀ / √H) V' among them,
        and the results put back at the places of the queries."""

        def taken(x, members):  # (clusters, t): does the centroid take the token?
            if members is not None:
                return (members[:, :, None] == jnp.arange(len(x))[None, None]).any(axis=1)
            near = centroids.astype(x.dtype) @ x.T
            return jnp.argsort(jnp.argsort(-near, axis=1, stable=True), axis=1) < self.members

        queries, keys = taken(q, query_members), taken(k, key_members)
        scores = (q @ k.T / jnp.sqrt(q.shape[1]))[None]
        attention = jax.nn.softmax(jnp.where(keys[:, None], scores, -jnp.inf), axis=-1)
        total = jnp.where(queries[:, :, None], attention, 0).sum(axis=0) @ v
        return total / jnp.maximum(queries.sum(axis=0), 1)[:, None]

    def near(self, x: jax.Array, centroids: jax.Array) -> jax.Array:
        """x (B, T, heads, H) times the centroids: (B, clusters, N, T)."""
        x = repeat_heads(lax.stop_gradient(x), self.geometry.heads).astype(accurate(x.dtype))
        return jnp.einsum("btnh,nch->bcnt", x, centroids.astype(x.dtype))

    def selection(self, streams, layout):
        """The tokens whose queries, and whose keys, each centroid takes: (B, clusters, N, members)."""

        def members(x):
            near = self.near(x, self.centroids[...])
            if layout.valid is not None:
                near = jnp.where(layout.valid[:, None, None], near, -jnp.inf)
            return best(near, self.members)

        return {"query_members": members(streams["q"]), "key_members": members(streams["k"])}

    def core(self, streams, layout, state):
        if "key_members" not in streams:
            streams = streams | self.selection(streams, layout)
        heads, length = self.geometry.heads, layout.positions.shape[1]
        one_row = lambda x: jnp.moveaxis(x, 2, 3).reshape(x.shape[0], -1, heads)  # (B, clusters·members, N)
        queries, keys = one_row(streams["query_members"]), one_row(streams["key_members"])
        q, k, v = (repeat_heads(streams[name], heads) for name in "qkv")
        o, _ = attend(
            take(q, queries),
            take(k, keys),
            take(v, keys),
            self.plan(length),
            lambda qk, query, key, shared: jnp.where(
                key["place"][None] < 0, -jnp.inf, qk * q.shape[3] ** -0.5
            ),
            key={"place": keys},
        )
        put = lambda x, at: jnp.zeros((length, *x.shape[1:]), x.dtype).at[at].add(x, mode="drop")
        put = jax.vmap(jax.vmap(put, (1, 1), 1))
        at = jnp.where(queries < 0, length, queries)
        return put(o, at) / jnp.maximum(put(jnp.ones_like(o[..., :1]), at), 1), {}

    def plan(self, length: int) -> Plan:
        """Of the members of all clusters, one cluster after another."""
        members = min(self.members, length)
        return own_blocks(self.clusters * members, self.clusters * members, members)

    def observe(self, x, layout):
        """Σ Q_i + Σ K_j over the queries and keys that are nearest to each centroid: (N, clusters, H)."""
        streams, _ = self.streams(x, layout)
        old, total = self.centroids[...], jnp.zeros_like(self.centroids[...])
        for name in "qk":
            nearest = jnp.argmax(self.near(streams[name], unit(old)), axis=1)
            member = jax.nn.one_hot(nearest, self.clusters, axis=1, dtype=old.dtype)  # (B, clusters, N, T)
            if layout.valid is not None:
                member = jnp.where(layout.valid[:, None, None], member, 0)
            of_head = repeat_heads(streams[name], self.geometry.heads).astype(old.dtype)
            total += jnp.einsum("bcnt,btnh->nch", member, of_head)
        return {"members": lax.stop_gradient(total)}

    def renew(self, step, key, observed):
        """Algorithm 1: μ ← λ μ + (1 − λ)/2 (Σ Q_i + Σ K_j), with λ = `decay`."""
        self.centroids[...] = self.decay * self.centroids[...] + (1 - self.decay) / 2 * observed["members"]

    def core_flops(self, batch, length):
        g = self.geometry
        routing, attention = 4 * length * self.clusters, 4 * self.plan(length).pairs
        return batch * g.heads * g.head_size * (routing + attention)
