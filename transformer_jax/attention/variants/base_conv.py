"""BaseConv: a gate times a convolution, the least that the gated convolutions have in common."""

from __future__ import annotations

import jax.numpy as jnp
from flax import nnx

from transformer_jax.attention.contract import Geometry
from transformer_jax.attention.core import linear_flops
from transformer_jax.attention.variants.short_convolution import ShortConvolutionMixer


class BaseConv(ShortConvolutionMixer):
    """Zoology's BaseConv (arXiv:2312.04927): y = (u W + b₁) ⊙ (h ∗ u + b₂), with an explicit short h.

    It is the operator of the paper's section 4 and its theorems 4.4 and 4.5, with no activation. The paper's
    hybrid alternates this with a filter as long as the sequence; a `taps` of the length is that long filter,
    computed tap by tap. As in the paper there is no output projection; the authors' code adds u once more,
    which here the model's residual does. The effective matrix is that of the convolution.
    """

    name = "base_conv"

    def __init__(self, geometry: Geometry, *, taps: int = 3, rngs: nnx.Rngs):
        super().__init__(geometry, taps=taps, rngs=rngs)
        dtype = jnp.dtype(geometry.dtype)
        self.projection = nnx.Linear(geometry.width, geometry.width, dtype=dtype, rngs=rngs)

    def finish(self, o, x):
        return self.projection(x) * super().finish(o, x)

    def projection_flops(self, batch, length):
        return linear_flops(batch * length, self.projection)
