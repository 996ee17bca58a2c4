"""Mamba: a selective state space, several decaying states per channel that the input writes and reads."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx

from transformer_jax.attention.contract import Capability, Geometry
from transformer_jax.attention.convolution import ShortConvolution
from transformer_jax.attention.core import linear_flops
from transformer_jax.attention.engines.scan_mixer import ScanMixer
from transformer_jax.attention.gates import time_step_bias
from transformer_jax.errors import BadInput


class Mamba(ScanMixer):
    """Mamba (arXiv:2312.00752): the selective scan S6 in its gated block.

    Each of the N·H channels (the paper's E·D, with E = 2) has `state_size` states of its own; B and C are
    shared by all channels. Ā = e^(Δ A) is the zero-order hold of equation 4; B̄ = Δ B is that of the authors'
    code, simpler than the equation's. Δ passes through `rank` numbers, ⌈D / 16⌉ where None. The convolution
    has no bias. Position is in the decay and the convolution: a model's rotary embedding is not applied.
    """

    name = "mamba"
    paper = "arXiv:2312.00752"
    own_convolution = True
    small = {"state_size": 3, "rank": 2}
    chunk = 64
    capability = Capability(
        refused={"cross": "its decay needs inputs and outputs on one time line."},
        notes={"bidirectional": "forward plus reversed, the skip once; the short convolution stays causal"},
    )

    def __init__(
        self,
        geometry: Geometry,
        *,
        state_size: int = 16,
        rank: int | None = None,
        taps: int = 4,
        rngs: nnx.Rngs,
    ):
        rank = -(-geometry.width // 16) if rank is None else rank
        if state_size < 1 or rank < 1:
            raise BadInput(
                f"mamba state_size={state_size} and rank={rank} must be at least 1; the paper has 16 states "
                f"and a rank of the width over 16."
            )
        super().__init__(geometry)
        g, channels = geometry, self.mixed_heads
        self.state_size, self.rank = state_size, rank
        self.inputs, self.gate = (self.linear(g.width, channels, rngs) for _ in range(2))
        self.convolution = ShortConvolution(channels, taps, dtype=g.dtype, rngs=rngs)
        self.selection_down = self.linear(channels, rank + 2 * state_size, rngs, axes="heads -")
        self.time_step = self.linear(rank, channels, rngs, axes="- heads")
        self.out = self.joining(channels, rngs)
        self.dt_bias = nnx.Param(time_step_bias(rngs.params(), channels))
        # The real start of S4D: A_n = −n for n = 1 … N.
        states = jnp.log(jnp.arange(1.0, state_size + 1))
        self.A_log = nnx.Param(jnp.broadcast_to(states, (channels, state_size)))
        self.skip = nnx.Param(jnp.ones(channels))

    def definition(self, v, dt, B, C, A, skip):
        """Equation 2 with Ā = e^(Δ A), B̄ = Δ B: h_t = Ā_t h_{t−1} + B̄_t x_t, y_t = C_t h_t + D x_t."""

        def step(h, x):
            x, dt, B, C = x
            h = jnp.exp(dt * A)[:, None] * h + dt * jnp.outer(B, x)
            return h, C @ h

        def scan(reverse):
            empty = jnp.zeros((A.size, v.shape[1]), dt.dtype)
            return jax.lax.scan(step, empty, (v, dt, B, C), reverse=reverse)[1]

        y = scan(False) if self.geometry.causal else scan(False) + scan(True)
        return y + skip * v

    def weights(self):
        """A (channels, states) and the skip D (channels)."""
        exact = jnp.promote_types(jnp.float32, jnp.dtype(self.geometry.dtype))
        return {"A": -jnp.exp(self.A_log[...].astype(exact)), "skip": self.skip[...].astype(exact)}

    def streams(self, x, layout, state=None, context=None):
        part = None if state is None else state["inputs"]
        v, moved = self.convolution(self.inputs(x), layout, part)
        v = jax.nn.silu(v)
        dt, B, C = jnp.split(self.selection_down(v), [self.rank, self.rank + self.state_size], axis=-1)
        accurate = jnp.promote_types(jnp.float32, x.dtype)
        dt = self.time_step(dt).astype(accurate) + self.dt_bias[...].astype(accurate)[None, None]
        dt = jax.nn.softplus(dt)
        return {"v": v[..., None], "dt": dt, "B": B[:, :, None], "C": C[:, :, None]}, {"inputs": moved}

    @property
    def states(self):
        return self.state_size

    def expand(self, streams):
        dt = streams["dt"][..., None]
        return jnp.exp(dt * streams["A"][None, None]), dt * streams["v"] * streams["B"]

    def read(self, h, streams):
        return jnp.sum(h * streams["C"], axis=-1, keepdims=True)

    def core(self, streams, layout, state):
        o, moved = super().core(streams, layout, state)
        return o + self.weights()["skip"][None, None, :, None] * streams["v"], moved

    def finish(self, o, x):
        return self.out((o[..., 0] * jax.nn.silu(self.gate(x))).astype(x.dtype))

    def init_state(self, batch):
        return super().init_state(batch) | {"inputs": self.convolution.init_state(batch)}

    def projection_flops(self, batch, length):
        layers = (self.inputs, self.gate, self.selection_down, self.time_step, self.out)
        return linear_flops(batch * length, *layers)
