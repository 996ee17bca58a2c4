"""DeltaProduct: a memory that is corrected several times per token, each time under another key."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx

from transformer_jax.attention.contract import Capability, Geometry
from transformer_jax.attention.core import linear_flops, repeat_heads
from transformer_jax.attention.engines.convolved_mixer import ConvolvedMixer
from transformer_jax.attention.engines.forms import Recurrence
from transformer_jax.attention.gates import unit
from transformer_jax.errors import BadInput


class DeltaProduct(ConvolvedMixer):
    """DeltaProduct (arXiv:2502.10297), without its optional decay.

    Each token writes `steps` times (the paper's n_h), with a key, a value and a β of each; the transition of
    a token is a product of generalized Householder matrices. Every step takes its error from the state that
    the one before left, and only the last is read. β = 2σ(·) is between 0 and 2, so that each may be a
    reflection (beta_max = 1 keeps it from that). With one step and its beta_max it is `delta_net`. q and k
    have unit length and nothing is divided by √H, which the norm of each head would undo. Values have H
    channels; flash-linear-attention, to which the authors gave their layer, has 2H and an output gate.
    """

    name = "delta_product"
    paper = "arXiv:2502.10297"
    capability = Capability(
        refused={"cross": "its state is written and erased in the order of one sequence."},
        notes={
            "bidirectional": "forward plus reversed, the steps of a token in their order in both; the short "
            "convolutions stay causal"
        },
    )

    def __init__(
        self,
        geometry: Geometry,
        *,
        steps: int = 2,
        beta_max: float = 2.0,
        taps: int = 4,
        rngs: nnx.Rngs,
    ):
        if steps < 1 or not 0 < beta_max <= 2:
            raise BadInput(
                f"delta_product steps={steps} must be at least 1, and beta_max={beta_max} above 0 and at "
                f"most 2: beyond it the state would grow."
            )
        super().__init__(geometry, taps=taps, writes=steps, rngs=rngs)
        g = geometry
        self.steps, self.beta_max = steps, beta_max
        self.write_rate = self.linear(g.width, steps * g.heads, rngs)
        self.norm = nnx.RMSNorm(g.head_size, dtype=jnp.dtype(g.dtype), rngs=rngs)

    def definition(self, q, k, v, beta):
        """H_{i,j} = (I − β_{i,j} k_{i,j} k_{i,j}ᵀ) H_{i,j−1} + β_{i,j} k_{i,j} v_{i,j}ᵀ for
        j = 1 … n_h, H_{i,0} = H_{i−1,n_h}, o_i = H_{i,n_h}ᵀ q_i: section "DeltaProduct", in the third
        version section 3."""
        k, v, beta = (x.reshape(len(q), self.steps, *x.shape[1:]) for x in (k, v, beta))

        def token(H, x):
            q, k, v, beta = x
            for j in range(self.steps):
                H = H - beta[j] * jnp.outer(k[j], k[j] @ H) + beta[j] * jnp.outer(k[j], v[j])
            return H, q @ H

        def scan(reverse):
            empty = jnp.zeros((k.shape[-1], v.shape[-1]), q.dtype)
            return jax.lax.scan(token, empty, (q, k, v, beta), reverse=reverse)[1]

        return scan(False) if self.geometry.causal else scan(False) + scan(True)

    def streams(self, x, layout, state=None, context=None):
        g = self.geometry
        streams, moved = self.convolved(x, layout, state)
        q = streams["q"].reshape(*x.shape[:2], g.heads, g.head_size)
        k, v = (streams[s].reshape(x.shape[0], -1, g.kv_heads, g.head_size) for s in "kv")
        logits = self.write_rate(x).astype(jnp.promote_types(jnp.float32, x.dtype))
        beta = self.beta_max * jax.nn.sigmoid(logits.reshape(x.shape[0], -1, g.heads))
        return {"q": unit(q), "k": unit(k), "v": v, "beta": beta}, moved

    def recurrence(self, streams):
        heads, beta = self.geometry.heads, streams["beta"]
        k, v = repeat_heads(streams["k"], heads), repeat_heads(streams["v"], heads)
        return Recurrence(q=streams["q"], k=k, v=v * beta[..., None].astype(v.dtype), a=-beta, b=k)

    def finish(self, o, x):
        """Each head is normalized before the output projection."""
        return super().finish(self.norm(o), x)

    def projection_flops(self, batch, length):
        return super().projection_flops(batch, length) + linear_flops(batch * length, self.write_rate)
