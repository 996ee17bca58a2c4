"""Gated DeltaNet: a memory that replaces what a key held before, and fades as the input decides."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx

from transformer_jax.attention.contract import Capability, Geometry
from transformer_jax.attention.convolution import ShortConvolution
from transformer_jax.attention.engines.forms import Recurrence
from transformer_jax.attention.engines.recurrence_mixer import RecurrenceMixer
from transformer_jax.attention.heads import repeat_heads


class GatedDeltaNet(RecurrenceMixer):
    """Gated delta networks (arXiv:2412.06464).

    α and β are those of each query head; the state decays before the error of the delta rule is taken,
    as equation 10 has it. q and k have unit length and nothing is divided by √H (the authors' code
    divides; the norm after it undoes that). Values have H channels, the paper's usually 2H. Position is
    in the decay and the convolutions: a model's rotary embedding is not applied.
    """

    name = "gated_delta_net"
    paper = "arXiv:2412.06464"
    own_convolution = True
    capability = Capability(
        refused={"cross": "its state is written and erased in the order of one sequence."},
        notes={"bidirectional": "forward plus reversed; the short convolutions stay causal"},
    )

    def __init__(self, geometry: Geometry, *, taps: int = 4, rngs: nnx.Rngs):
        super().__init__(geometry, rngs=rngs)
        g = geometry
        self.query_convolution = ShortConvolution(g.heads * g.head_size, taps, dtype=g.dtype, rngs=rngs)
        self.key_convolution = ShortConvolution(g.kv_heads * g.head_size, taps, dtype=g.dtype, rngs=rngs)
        self.value_convolution = ShortConvolution(g.kv_heads * g.head_size, taps, dtype=g.dtype, rngs=rngs)
        self.decay_rate, self.write_rate = (self.linear(g.width, g.heads, rngs) for _ in range(2))
        self.gate = self.linear(g.width, g.heads * g.head_size, rngs)
        self.norm = nnx.RMSNorm(g.head_size, dtype=jnp.dtype(g.dtype), rngs=rngs)
        # As in Mamba-2: e^A_log uniform in [1, 16], softplus(dt_bias) log-uniform in [0.001, 0.1].
        low, high = jnp.log(0.001), jnp.log(0.1)
        dt = jnp.exp(jax.random.uniform(rngs.params(), (g.heads,), minval=low, maxval=high))
        self.dt_bias = nnx.Param(dt + jnp.log(-jnp.expm1(-dt)))
        self.A_log = nnx.Param(
            jnp.log(jax.random.uniform(rngs.params(), (g.heads,), minval=1.0, maxval=16.0))
        )

    def definition(self, q, k, v, log_decay, beta):
        """Equation 10: S_t = S_{t−1} (α_t (I − β_t k_t k_tᵀ)) + β_t v_t k_tᵀ, o_t = S_t q_t."""

        def step(S, x):
            q, k, v, log_alpha, beta = x
            erase = jnp.exp(log_alpha) * (jnp.eye(k.size, dtype=k.dtype) - beta * jnp.outer(k, k))
            S = S @ erase + beta * jnp.outer(v, k)
            return S, S @ q

        def scan(reverse):
            empty = jnp.zeros((v.shape[1], k.shape[1]), q.dtype)
            return jax.lax.scan(step, empty, (q, k, v, log_decay, beta), reverse=reverse)[1]

        return scan(False) if self.geometry.causal else scan(False) + scan(True)

    def streams(self, x, layout, state=None, context=None):
        g, moved = self.geometry, {}

        def convolved(name, project, convolution, heads):
            part = None if state is None else state[name]
            y, moved[name] = convolution(project(x), layout, part)
            return jax.nn.silu(y).reshape(*x.shape[:2], heads, g.head_size)

        q = convolved("query", self.query, self.query_convolution, g.heads)
        k = convolved("key", self.key, self.key_convolution, g.kv_heads)
        v = convolved("value", self.value, self.value_convolution, g.kv_heads)
        accurate = jnp.promote_types(jnp.float32, x.dtype)
        dt = jax.nn.softplus(self.decay_rate(x).astype(accurate) + self.dt_bias[...][None, None])
        return {
            "q": unit(q),
            "k": unit(k),
            "v": v,
            "log_decay": -jnp.exp(self.A_log[...].astype(accurate))[None, None] * dt,
            "beta": jax.nn.sigmoid(self.write_rate(x).astype(accurate)),
        }, moved

    def recurrence(self, streams):
        heads = self.geometry.heads
        k, v = repeat_heads(streams["k"], heads), repeat_heads(streams["v"], heads)
        log_decay, beta = streams["log_decay"], streams["beta"]
        return Recurrence(
            q=streams["q"],
            k=k,
            v=v * beta[..., None].astype(v.dtype),
            log_decay=log_decay,
            a=-beta * jnp.exp(log_decay),
            b=k,
        )

    def finish(self, o, x):
        """Section 3.4: each head is normalized, then gated."""
        o = self.norm(o).reshape(*o.shape[:2], -1)
        return self.out((o * jax.nn.silu(self.gate(x))).astype(x.dtype))

    def init_state(self, batch):
        convolutions = {
            "query": self.query_convolution,
            "key": self.key_convolution,
            "value": self.value_convolution,
        }
        return super().init_state(batch) | {name: c.init_state(batch) for name, c in convolutions.items()}

    def projection_flops(self, batch, length):
        g = self.geometry
        gates = 2 * batch * length * g.width * g.heads * (g.head_size + 2)
        return super().projection_flops(batch, length) + gates


def unit(x: jax.Array) -> jax.Array:
    """x / |x| along the last axis."""
    square = jnp.sum(jnp.square(x.astype(jnp.promote_types(jnp.float32, x.dtype))), axis=-1, keepdims=True)
    return (x * jax.lax.rsqrt(square + 1e-6)).astype(x.dtype)
