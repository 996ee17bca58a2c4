"""minGRU: a gated recurrent unit whose gate and candidate see the input only."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx

from transformer_jax.attention.contract import Capability, Geometry
from transformer_jax.attention.core import linear_flops
from transformer_jax.attention.engines.scan_mixer import ScanMixer
from transformer_jax.errors import BadInput


class MinGRU(ScanMixer):
    """Were RNNs all we needed? (arXiv:2410.01201), its minimal GRU.

    The candidate is linear, as in section 3.1. The paper's appendix computes in logarithms and for that makes
    the candidate positive: candidate="positive" is its g(x) = x + 0.5 for x ≥ 0, else σ(x). The scan here
    divides by nothing and needs no logarithms; the state starts from 0 in both. N·H is the hidden width (the
    paper's α·D), `out` the down-projection. Position is in the gate: a model's rotary embedding is not
    applied.
    """

    name = "min_gru"
    paper = "arXiv:2410.01201"
    capability = Capability(
        refused={"cross": "its gates need inputs and outputs on one time line."},
        notes={"bidirectional": "forward plus reversed, each of which sees the token itself"},
    )

    def __init__(self, geometry: Geometry, *, candidate: str = "linear", rngs: nnx.Rngs):
        if candidate not in ("linear", "positive"):
            raise BadInput(f"min_gru candidate={candidate!r} is unknown: give 'linear' or 'positive'.")
        super().__init__(geometry)
        g = geometry
        self.candidate = candidate
        self.update = self.linear(g.width, self.mixed_heads, rngs, bias=True)
        self.hidden = self.linear(g.width, self.mixed_heads, rngs, bias=True)
        self.out = self.joining(self.mixed_heads, rngs)

    def definition(self, z, v):
        """Section 3.1: h_t = (1 − z_t) ⊙ h_{t−1} + z_t ⊙ h̃_t, with z_t = σ(Linear(x_t)) and
        v = h̃ = Linear(x)."""

        def step(h, x):
            z, candidate = x
            h = (1 - z) * h + z * candidate
            return h, h

        def scan(reverse):
            return jax.lax.scan(step, jnp.zeros(v.shape[1], z.dtype), (z, v), reverse=reverse)[1]

        return scan(False) if self.geometry.causal else scan(False) + scan(True)

    def streams(self, x, layout, state=None, context=None):
        z = jax.nn.sigmoid(self.update(x).astype(jnp.promote_types(jnp.float32, x.dtype)))
        v = self.hidden(x)
        if self.candidate == "positive":
            v = jnp.where(v >= 0, v + 0.5, jax.nn.sigmoid(v))
        return {"z": z, "v": v[..., None]}, {}

    def expand(self, streams):
        z = streams["z"][..., None]
        return 1 - z, z * streams["v"]

    def finish(self, o, x):
        return self.out(o[..., 0].astype(x.dtype))

    def projection_flops(self, batch, length):
        return linear_flops(batch * length, self.update, self.hidden, self.out)
