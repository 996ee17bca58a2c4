"""cosFormer: linear attention with rectified features, weighted by the cosine of a distance."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from transformer_jax.attention.contract import Capability
from transformer_jax.attention.core import repeat_heads
from transformer_jax.attention.engines.forms import Recurrence
from transformer_jax.attention.engines.recurrence_mixer import RecurrenceMixer


class CosFormer(RecurrenceMixer):
    """cosFormer: rethinking softmax in attention (arXiv:2202.08791).

    M, the distance at which a weight is 0, is the model's `length`. The paper takes the length of the
    sequence at hand; the value of a token would then depend on what comes after it. Positions count from 0 in
    each segment, the authors' from 1, which changes no distance. Nothing is divided by √H, which would
    cancel. A query that no key answers reads 0, where the authors' code bounds the normalizer from below.
    Position is in the cosine: a model's rotary embedding is not applied.
    """

    name = "cosformer"
    paper = "arXiv:2202.08791"
    capability = Capability(
        refused={"cross": "the weight cos(π(i − j)/2M) needs queries and keys on one time line."}
    )

    def definition(self, q, k, v, angle):
        """s(Q_i, K_j) = ReLU(Q_i) ReLU(K_j)ᵀ cos(π/2 · (i − j)/M), divided by its sum over j: section
        "cos-based re-weighting mechanism"."""
        A = jax.nn.relu(q) @ jax.nn.relu(k).T * jnp.cos(angle[:, None] - angle[None, :])
        if self.geometry.causal:
            A = jnp.tril(A)
        z = A.sum(axis=1, keepdims=True)
        return A @ v / jnp.where(z > 0, z, 1)

    def streams(self, x, layout, state=None, context=None):
        q, k, v = (project(x) for project in (self.query, self.key, self.value))
        q, k, v = (y.reshape(*x.shape[:2], -1, self.geometry.head_size) for y in (q, k, v))
        accurate = jnp.promote_types(jnp.float32, x.dtype)
        angle = jnp.pi / 2 * layout.positions.astype(accurate) / self.geometry.length
        return {"q": q, "k": k, "v": v, "angle": jnp.broadcast_to(angle[..., None], q.shape[:3])}, {}

    def recurrence(self, streams):
        """Ptolemy's theorem: cos(a − b) = cos a cos b + sin a sin b, each at least 0 here."""
        heads = self.geometry.heads
        angle = streams["angle"][..., None]
        q, k, v = (repeat_heads(streams[name], heads) for name in ("q", "k", "v"))
        q, k = (
            jnp.concatenate([jax.nn.relu(x) * jnp.cos(angle), jax.nn.relu(x) * jnp.sin(angle)], axis=-1)
            for x in (q, k)
        )
        return Recurrence(q=q, k=k, v=v, normalizer="sum")
