"""A short causal convolution and nothing else: how far locality gets."""

from __future__ import annotations

import jax.numpy as jnp
from flax import nnx

from transformer_jax.attention.contract import Capability, Geometry
from transformer_jax.attention.convolution import ShortConvolution
from transformer_jax.attention.core import CoreMixer


class ShortConvolutionMixer(CoreMixer):
    """y = h ∗ x + b, depthwise: each of the D channels with `taps` weights of its own.

    A baseline, the convolution of BaseConv (arXiv:2312.04927, section 4, the operator of its theorems 4.4 and
    4.5) without its gate: content decides nothing, and a token sees itself and the taps − 1 before it. It has
    no projections, no heads and no positions.
    """

    name = "short_convolution"
    paper = "arXiv:2312.04927"
    family = "convolution"
    time = "T"
    state = "1"
    own_convolution = True
    small = {"taps": 4}
    capability = Capability(
        refused={
            "bidirectional": "its weights are those of the tokens before; one to both sides is another.",
            "cross": "a convolution goes along one sequence.",
        },
        sequence="parallel",
    )

    def __init__(self, geometry: Geometry, *, taps: int = 3, rngs: nnx.Rngs):
        super().__init__(geometry)
        self.convolution = ShortConvolution(geometry.width, taps, dtype=geometry.dtype, rngs=rngs)
        self.bias = nnx.Param(jnp.zeros(geometry.width))

    @property
    def mixed_heads(self):
        return self.geometry.width

    def weights(self):
        return {"h": self.convolution.kernel[...].T[:, ::-1]}

    def definition(self, v, h):
        """Of the paper's section 4, of one channel: (h ∗ u)_t = Σ_l h_l u_{t−l}; b is added after."""
        lag = jnp.arange(len(v))[:, None] - jnp.arange(len(v))[None]
        return jnp.where((lag >= 0) & (lag < len(h)), h[jnp.clip(lag, 0, len(h) - 1)], 0) @ v

    def streams(self, x, layout, state=None, context=None):
        return {"v": x[..., None]}, {}

    def core(self, streams, layout, state):
        part = None if state is None else state["inputs"]
        o, moved = self.convolution(streams["v"][..., 0], layout, part)
        return o[..., None], {"inputs": moved}

    def finish(self, o, x):
        return (o[..., 0] + self.bias[...][None, None]).astype(x.dtype)

    def init_state(self, batch):
        return {"inputs": self.convolution.init_state(batch)}

    def core_flops(self, batch, length):
        return 0

    def projection_flops(self, batch, length):
        return 0
