"""H3: two state spaces and two products, a shift to compare neighbours and a memory to keep them."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from transformer_jax.attention.contract import Capability, Geometry
from transformer_jax.attention.convolution import ShortConvolution
from transformer_jax.attention.core import repeat_heads
from transformer_jax.attention.engines import state_space
from transformer_jax.attention.heads import HeadMixer
from transformer_jax.errors import BadInput


class H3(HeadMixer):
    """Hungry hungry hippos (arXiv:2212.14052): o = q ⊙ SSM_diag(SSM_shift(k) ⊙ v), in heads of `part`
    channels as in its Algorithm 1, where ⊙ are an outer product and a product with q.

    The N·H channels of the layer make N·H / part heads of their own, for the state has part · state_size
    numbers per channel. SSM_shift with B = e₁ is a convolution of `taps` taps. SSM_diag has state_size / 2
    conjugate pairs of states per head, A = −½ + iπn at the start (S4D-Lin, arXiv:2206.11893) and Δ
    log-uniform in [0.001, 0.1], held exactly between steps (zero-order hold, an option of the authors' code,
    whose default is the bilinear transform); B = 1, of which only the product with C matters. The authors' D
    of the shift is its first tap. The projections have no bias. Position is in the state spaces: a model's
    rotary embedding is not applied.
    """

    name = "h3"
    paper = "arXiv:2212.14052"
    family = "linear recurrence"
    time = "T"
    state = "1"
    own_convolution = True
    small = {"part": 2, "state_size": 6, "taps": 3}
    capability = Capability(
        refused={
            "bidirectional": "its state spaces carry what came before; the paper defines no other direction.",
            "cross": "its state needs queries and keys on one time line.",
        }
    )

    def __init__(
        self, geometry: Geometry, *, part: int = 8, state_size: int = 64, taps: int = 64, rngs: nnx.Rngs
    ):
        if part < 1 or geometry.head_size % part:
            raise BadInput(
                f"h3 part={part} must divide head_size={geometry.head_size}; the paper has 1 or 8."
            )
        if state_size < 2 or state_size % 2:
            raise BadInput(
                f"h3 state_size={state_size} must be even, at least 2: states are conjugate pairs."
            )
        super().__init__(geometry, rngs=rngs)
        self.part, self.states = part, state_size // 2
        self.shift = ShortConvolution(self.key.out_features, taps, dtype=geometry.dtype, rngs=rngs)
        heads, shape = self.mixed_heads, (self.mixed_heads, self.states)
        uniform = lambda low, high, shape: jax.random.uniform(rngs.params(), shape, minval=low, maxval=high)
        self.log_dt = nnx.Param(uniform(jnp.log(0.001), jnp.log(0.1), (heads,)))
        self.log_rate = nnx.Param(jnp.full(shape, jnp.log(0.5)))
        self.frequency = nnx.Param(jnp.broadcast_to(np.pi * jnp.arange(self.states), shape))
        self.C_real, self.C_imaginary = (
            nnx.Param(jax.random.normal(rngs.params(), shape) * 0.5**0.5) for _ in range(2)
        )
        self.skip = nnx.Param(jax.random.normal(rngs.params(), (heads,)))

    @property
    def mixed_heads(self):
        return self.geometry.heads * self.geometry.head_size // self.part

    def weights(self):
        """a = ΔA and c = 2 C B̄, B̄ = A⁻¹ (e^{ΔA} − 1), of each head and state; the skip D."""
        exact = jnp.promote_types(jnp.float32, jnp.dtype(self.geometry.dtype))
        part = lambda parameter: parameter[...].astype(exact)
        A = jax.lax.complex(-jnp.exp(part(self.log_rate)), part(self.frequency))
        a = jnp.exp(part(self.log_dt))[:, None] * A
        C = jax.lax.complex(part(self.C_real), part(self.C_imaginary))
        return {"a": a, "c": 2 * C * jnp.expm1(a) / A, "d": part(self.skip)}

    def definition(self, q, k, v, a, c, d):
        """Algorithm 1, of one of its heads: u_i = k̄_i v_iᵀ, x_i = Ā x_{i−1} + B̄ u_i, y_i = C x_i + D u_i,
        o_i = q_iᵀ y_i, with B̄ in C."""

        def step(x, i):
            q, k, v = i
            u = jnp.outer(k, v)
            x = jnp.exp(a.astype(x.dtype))[:, None, None] * x + u[None]
            y = jnp.real(jnp.sum(c[:, None, None] * x, axis=0)) + d * u
            return x, q @ y

        kind = jnp.promote_types(jnp.complex64, q.dtype)
        return jax.lax.scan(step, jnp.zeros((len(a), k.shape[1], v.shape[1]), kind), (q, k, v))[1]

    def streams(self, x, layout, state=None, context=None):
        k, moved = self.shift(self.key(x), layout, None if state is None else state["key"])
        streams = {"q": self.query(x), "k": k, "v": self.value(x)}
        by_head = lambda x: x.reshape(*x.shape[:2], -1, self.part)
        return {name: by_head(x) for name, x in streams.items()}, {"key": moved}

    def core(self, streams, layout, state):
        q, k, v = (repeat_heads(streams[name], self.mixed_heads) for name in "qkv")
        return state_space.mix(q, k, v, **self.weights(), layout=layout, state=state)

    def init_state(self, batch):
        exact = jnp.promote_types(jnp.float32, jnp.dtype(self.geometry.dtype))
        empty = state_space.empty(batch, self.mixed_heads, self.states, self.part, self.part, exact)
        return empty | {"key": self.shift.init_state(batch)}

    def core_flops(self, batch, length):
        return state_space.flops(batch, length, self.mixed_heads, self.states, self.part, self.part)
