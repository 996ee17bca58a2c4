"""DeltaNet: a memory that replaces what a key held before, instead of adding to it."""

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


class DeltaNet(ConvolvedMixer):
    """Parallelizing linear transformers with the delta rule (arXiv:2406.06484).

    β = `beta_max` · σ(w_β x) is that of each query head. The paper has β in (0, 1); with beta_max = 2 a key
    may also be flipped, the eigenvalue 1 − β of the transition being negative (arXiv:2411.12537). q and k
    have unit length and nothing is divided by √H, which the norm of each head would undo.
    """

    name = "delta_net"
    paper = "arXiv:2406.06484"
    capability = Capability(
        refused={"cross": "its state is written and erased in the order of one sequence."},
        notes={"bidirectional": "forward plus reversed; the short convolutions stay causal"},
    )

    def __init__(self, geometry: Geometry, *, beta_max: float = 1.0, taps: int = 4, rngs: nnx.Rngs):
        if not 0 < beta_max <= 2:
            raise BadInput(
                f"delta_net beta_max={beta_max} lets the state grow, or writes nothing: choose 1, or 2 for "
                f"negative eigenvalues."
            )
        super().__init__(geometry, taps=taps, rngs=rngs)
        self.beta_max = beta_max
        self.write_rate = self.linear(geometry.width, geometry.heads, rngs)
        self.norm = nnx.RMSNorm(geometry.head_size, dtype=jnp.dtype(geometry.dtype), rngs=rngs)

    def definition(self, q, k, v, beta):
        """Section 2.2: S_t = S_{t−1} (I − β_t k_t k_tᵀ) + β_t v_t k_tᵀ, o_t = S_t q_t."""

        def step(S, x):
            q, k, v, beta = x
            S = S @ (jnp.eye(k.size, dtype=k.dtype) - beta * jnp.outer(k, k)) + beta * jnp.outer(v, k)
            return S, S @ q

        def scan(reverse):
            empty = jnp.zeros((v.shape[1], k.shape[1]), q.dtype)
            return jax.lax.scan(step, empty, (q, k, v, beta), reverse=reverse)[1]

        return scan(False) if self.geometry.causal else scan(False) + scan(True)

    def streams(self, x, layout, state=None, context=None):
        streams, moved = self.convolved(x, layout, state)
        q, k, v = (streams[s].reshape(*x.shape[:2], -1, self.geometry.head_size) for s in "qkv")
        logits = self.write_rate(x).astype(jnp.promote_types(jnp.float32, x.dtype))
        return {"q": unit(q), "k": unit(k), "v": v, "beta": self.beta_max * jax.nn.sigmoid(logits)}, moved

    def recurrence(self, streams):
        heads, beta = self.geometry.heads, streams["beta"]
        k, v = repeat_heads(streams["k"], heads), repeat_heads(streams["v"], heads)
        return Recurrence(q=streams["q"], k=k, v=v * beta[..., None].astype(v.dtype), a=-beta, b=k)

    def finish(self, o, x):
        """Each head is normalized before the output projection."""
        return super().finish(self.norm(o), x)

    def projection_flops(self, batch, length):
        return super().projection_flops(batch, length) + linear_flops(batch * length, self.write_rate)
