"""Forgetting attention: softmax attention with a forget gate (FoX, arXiv:2503.02130)."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx

from transformer_jax.attention.contract import Capability
from transformer_jax.attention.variants.full import Full


class Forgetting(Full):
    """Full attention whose weights fade by the gates f between key and query, as the input decides.

    There is one gate per key-value head, between 0 and 1. A token's own gate fades what came before it and
    not the token. Logits are divided by √H before the bias is added, as the authors' code does; the paper's
    equations leave the scale out. With log f summed up to c, the bias of the key at j is c_i − c_j; c is kept
    as a whole number and the rest, or float32 would lose the gates of a long row in its size. The mechanism
    needs no positions; a model that rotates does both. The output gate, the norms of q and k and the short
    shifts of the paper's "Pro" block are not part of it.
    """

    name = "forgetting"
    paper = "arXiv:2503.02130"
    query_streams = ("c", "rest")
    key_streams = ("c", "rest")
    capability = Capability(
        refused={
            "bidirectional": "a gate forgets what came before it; the paper has none for what comes after.",
            "cross": "the gates between key and query lie on one time line.",
        }
    )

    def __init__(self, geometry, *, rngs: nnx.Rngs):
        super().__init__(geometry, rngs=rngs)
        self.gate = self.linear(geometry.width, geometry.kv_heads, rngs, bias=True)

    def definition(self, q, k, v, c, rest):
        """Section 3: O = softmax(Q Kᵀ / √H + D) V, D_ij = Σ_{l=j+1…i} log f_l = c_i − c_j for j ≤ i, −∞ for
        later keys."""
        c = c + rest
        D = jnp.where(jnp.tril(jnp.ones((len(q), len(k)), bool)), c[:, None] - c[None, :], -jnp.inf)
        return jax.nn.softmax(q @ k.T / jnp.sqrt(q.shape[-1]) + D, axis=-1) @ v

    def streams(self, x, layout, state=None, context=None):
        """f_t = σ(w_fᵀ x_t + b_f), and c, summed from the start of a row: where it starts changes nothing."""
        streams, moved = super().streams(x, layout, state, context)
        log_f = jax.nn.log_sigmoid(self.gate(x).astype(jnp.promote_types(jnp.float32, x.dtype)))
        if layout.valid is not None:
            log_f = jnp.where(layout.valid[..., None], log_f, 0)
        c, rest = jax.lax.associative_scan(add, (jnp.zeros_like(log_f), log_f), axis=1)
        if state is not None:
            before = state["latest_c"][:, None], state["latest_rest"][:, None]
            c, rest = add(before, (c, rest))
            moved = moved | {"latest_c": c[:, -1], "latest_rest": rest[:, -1]}
        return streams | {"c": c, "rest": rest}, moved

    def logit(self, s, query, key):
        return s + sum(query[part][:, None] - key[part][None] for part in self.key_streams)

    def init_state(self, batch):
        g = self.geometry
        exact = jnp.promote_types(jnp.float32, jnp.dtype(g.dtype))
        zeros = lambda *shape: jnp.zeros((batch, g.kv_heads, *shape), exact)
        return super().init_state(batch) | {
            **{part: zeros(g.length) for part in self.key_streams},
            **{f"latest_{part}": zeros() for part in self.key_streams},
        }

    def projection_flops(self, batch, length):
        g = self.geometry
        return super().projection_flops(batch, length) + 2 * batch * length * g.width * g.kv_heads


def add(a: tuple[jax.Array, jax.Array], b: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
    """The sum of two numbers, each a whole number and a rest."""
    rest = a[1] + b[1]
    carried = jax.lax.stop_gradient(jnp.round(rest))
    return a[0] + b[0] + carried, rest - carried
