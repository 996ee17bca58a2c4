"""RG-LRU: a gated diagonal recurrence whose input is scaled by what the decay leaves (Griffin, Hawk)."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx

from transformer_jax.attention.contract import Capability, Geometry
from transformer_jax.attention.convolution import ShortConvolution
from transformer_jax.attention.core import linear_flops
from transformer_jax.attention.engines.scan_mixer import ScanMixer

SHARPNESS = 8.0
"""c of equation 3: a_t = a^(c r_t)."""


class RGLRU(ScanMixer):
    """Griffin (arXiv:2402.19427): the real-gated linear recurrent unit in its recurrent block.

    The block is x → (GELU branch) ⊙ (convolution, RG-LRU) → out. Its two gates are block-diagonal, with a
    block per head, as in the authors' code; only they have biases. The decay is a = exp(−c softplus(Λ) r), as
    in the code: the paper's σ(Λ) with the sign of Λ turned. Λ starts so that a^c is uniform in [0.9, 0.999],
    as the paper says (in the code a itself is). The code feeds the first token of a sequence unscaled; the
    paper's equation 4, followed here, has no such exception. N·H is the recurrent width. Position is in the
    decay and the convolution: a model's rotary embedding is not applied.
    """

    name = "rg_lru"
    paper = "arXiv:2402.19427"
    own_convolution = True
    capability = Capability(
        refused={"cross": "its decay needs inputs and outputs on one time line."},
        notes={
            "bidirectional": "forward plus reversed, each of which sees the token itself; the short "
            "convolution stays causal"
        },
    )

    def __init__(self, geometry: Geometry, *, taps: int = 4, rngs: nnx.Rngs):
        super().__init__(geometry)
        g = geometry
        self.gate = self.linear(g.width, self.mixed_heads, rngs)
        self.inputs = self.linear(g.width, self.mixed_heads, rngs)
        self.out = self.joining(self.mixed_heads, rngs)
        self.convolution = ShortConvolution(self.mixed_heads, taps, dtype=g.dtype, rngs=rngs)
        # Equations 1 and 2: weights (N, 2, H, H) of r and i, and their biases.
        bound = (3 / g.head_size) ** 0.5  # variance 1 / H
        shape = (g.heads, 2, g.head_size, g.head_size)
        self.gates = nnx.Param(jax.random.uniform(rngs.params(), shape, minval=-bound, maxval=bound))
        self.gates_bias = nnx.Param(jnp.zeros((g.heads, 2, g.head_size)))
        kept = jax.random.uniform(rngs.params(), (self.mixed_heads,), minval=0.9, maxval=0.999)
        self.Lambda = nnx.Param(jnp.log(jnp.expm1(-jnp.log(kept) / SHARPNESS)))

    def definition(self, v, i, log_decay):
        """Equation 4: h_t = a_t ⊙ h_{t−1} + √(1 − a_t²) ⊙ (i_t ⊙ x_t); v = x."""

        def step(h, x):
            x, i, log_a = x
            a = jnp.exp(log_a)
            h = a * h + jnp.sqrt(1 - a**2) * (i * x)
            return h, h

        def scan(reverse):
            empty = jnp.zeros(v.shape[1], log_decay.dtype)
            return jax.lax.scan(step, empty, (v, i, log_decay), reverse=reverse)[1]

        return scan(False) if self.geometry.causal else scan(False) + scan(True)

    def streams(self, x, layout, state=None, context=None):
        g = self.geometry
        part = None if state is None else state["inputs"]
        v, moved = self.convolution(self.inputs(x), layout, part)
        heads = v.reshape(*v.shape[:2], g.heads, g.head_size)
        gates = jnp.einsum("btnh,nghk->btgnk", heads, self.gates[...].astype(x.dtype))
        accurate = jnp.promote_types(jnp.float32, x.dtype)
        gates = gates.astype(accurate) + self.gates_bias[...].astype(accurate).swapaxes(0, 1)[None, None]
        r, i = jnp.moveaxis(jax.nn.sigmoid(gates).reshape(*x.shape[:2], 2, -1), 2, 0)
        rate = SHARPNESS * jax.nn.softplus(self.Lambda[...].astype(accurate))
        return {"v": v[..., None], "i": i, "log_decay": -rate[None, None] * r}, {"inputs": moved}

    def expand(self, streams):
        log_a = streams["log_decay"][..., None]
        lost = -jnp.expm1(2 * log_a)
        # Where a is exactly 1, nothing is written, and the root has no derivative.
        some = lost > 0
        scale = jnp.where(some, jnp.sqrt(jnp.where(some, lost, 1)), 0)
        return jnp.exp(log_a), scale * streams["i"][..., None] * streams["v"]

    def finish(self, o, x):
        return self.out((o[..., 0] * jax.nn.gelu(self.gate(x))).astype(x.dtype))

    def init_state(self, batch):
        return super().init_state(batch) | {"inputs": self.convolution.init_state(batch)}

    def projection_flops(self, batch, length):
        gates = 4 * batch * length * self.mixed_heads * self.geometry.head_size
        return gates + linear_flops(batch * length, self.gate, self.inputs, self.out)
