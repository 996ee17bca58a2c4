"""RWKV-7: a memory that decays per channel and replaces what it held under a removal key of its own."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx

from transformer_jax.attention.contract import Buffer, Capability, Geometry
from transformer_jax.attention.convolution import ShortConvolution
from transformer_jax.attention.core import linear_flops, repeat_heads
from transformer_jax.attention.engines.forms import Recurrence
from transformer_jax.attention.engines.recurrence_mixer import RecurrenceMixer
from transformer_jax.attention.gates import unit
from transformer_jax.errors import BadInput
from transformer_jax.parallel.rules import named

SHIFTED = "rkvwag"


class RWKV7(RecurrenceMixer):
    """RWKV-7 "Goose" (arXiv:2503.14456), its time mixing.

    The paper mixes the first layer's values into those of later layers (equations 8 to 10); a mixer does not
    know the others, so that is left out. What is removed is read from the state before it decays, unlike in
    the gated delta rule. A channel decays by w = exp(−e^(−½) σ(d)), between 0.545 and 1 (equation 12); the
    rates a are between 0 and 1; κ̂ has unit length, r and k̃ have not, and nothing is divided by √H. All
    low-rank layers have one `rank`; the paper's grow with the width. The ε of the norm is 1e-5 · H: the
    authors' 64e-5 at their H of 64. Decay, rate and keys are those of the key heads. Position is in the decay
    and the token shift: a model's rotary embedding is not applied.
    """

    name = "rwkv7"
    paper = "arXiv:2503.14456"
    own_convolution = True  # the token shift
    small = {"rank": 3}
    capability = Capability(
        refused={"cross": "its state is written and erased in the order of one sequence."},
        notes={"bidirectional": "forward plus reversed; the token shift looks back in both"},
    )

    def __init__(self, geometry: Geometry, *, rank: int = 64, rngs: nnx.Rngs):
        if rank < 1:
            raise BadInput(f"rwkv7 rank={rank} of its low-rank layers must be at least 1.")
        super().__init__(geometry, rngs=rngs)
        g = geometry
        size, keys = g.heads * g.head_size, g.kv_heads * g.head_size
        # x_{t−1}, kept over cuts, padding and packing as a convolution is: two taps, fixed at 1 and 0.
        self.previous = ShortConvolution(g.width, 2, dtype=g.dtype, rngs=rngs)
        self.previous.kernel = Buffer(jnp.stack([jnp.ones(g.width), jnp.zeros(g.width)]))
        self.shift = nnx.Param(jnp.full((len(SHIFTED), g.width), 0.5))
        self.decay_down, self.rate_down, self.gate_down = (
            self.linear(g.width, rank, rngs, axes="embed -") for _ in range(3)
        )
        dtype = jnp.dtype(g.dtype)
        slow_to_fast = lambda key, shape, dtype=None: jnp.linspace(-6.0, 1.0, *shape)
        self.decay_up = nnx.Linear(
            rank, keys, bias_init=slow_to_fast, dtype=dtype, rngs=rngs, kernel_metadata=named("- heads")
        )
        self.rate_up = self.linear(rank, keys, rngs, axes="- heads", bias=True)
        self.gate_up = self.linear(rank, size, rngs, axes="- heads")
        self.removal = nnx.Param(jnp.ones(keys))
        self.replacement = nnx.Param(jnp.ones(keys))
        self.bonus = nnx.Param(jnp.zeros((g.heads, g.head_size)))
        self.norm = nnx.LayerNorm(
            g.head_size, epsilon=1e-5 * g.head_size, use_scale=False, use_bias=False, dtype=dtype, rngs=rngs
        )
        self.norm_scale = nnx.Param(jnp.ones((g.heads, g.head_size)))
        self.norm_bias = nnx.Param(jnp.zeros((g.heads, g.head_size)))

    def definition(self, q, k, v, log_decay, removal, rate, gate):
        """Equation 17: S_t = S_{t−1} (diag(w_t) − κ̂_tᵀ (a_t ⊙ κ̂_t)) + v_tᵀ k̃_t, o_t = S_t r_tᵀ, of rows
        κ̂, a, v, k̃, r, and S for the paper's wkv; norm, bonus and gate (equations 20 to 22) come after."""

        def step(S, x):
            r, k, v, log_w, kappa, a = x
            S = S @ (jnp.diag(jnp.exp(log_w)) - jnp.outer(kappa, a * kappa)) + jnp.outer(v, k)
            return S, S @ r

        def scan(reverse):
            empty = jnp.zeros((v.shape[1], k.shape[1]), q.dtype)
            return jax.lax.scan(step, empty, (q, k, v, log_decay, removal, rate), reverse=reverse)[1]

        return scan(False) if self.geometry.causal else scan(False) + scan(True)

    def streams(self, x, layout, state=None, context=None):
        before, moved = self.previous(x, layout, None if state is None else state["previous"])
        shift = self.shift[...].astype(x.dtype)[:, None, None]
        mixed = {name: x + (before - x) * shift[i] for i, name in enumerate(SHIFTED)}
        r, k, v = self.query(mixed["r"]), self.key(mixed["k"]), self.value(mixed["v"])
        d = self.decay_up(jnp.tanh(self.decay_down(mixed["w"])))
        a = jax.nn.sigmoid(self.rate_up(self.rate_down(mixed["a"])))
        kappa = k * self.removal[...].astype(x.dtype)[None, None]
        k = k * (1 + (a - 1) * self.replacement[...].astype(x.dtype)[None, None])
        by_head = lambda y: y.reshape(*x.shape[:2], -1, self.geometry.head_size)
        r, k, v, d, a, kappa = map(by_head, (r, k, v, d, a, kappa))
        d = d.astype(jnp.promote_types(jnp.float32, x.dtype))
        return {
            "q": r,
            "k": k,
            "v": v,
            "log_decay": -jnp.exp(-0.5) * jax.nn.sigmoid(d),
            "removal": unit(kappa),
            "rate": a,
            "gate": self.gate_up(jax.nn.sigmoid(self.gate_down(mixed["g"]))).reshape(r.shape),
        }, {"previous": moved}

    def recurrence(self, streams):
        heads = self.geometry.heads
        k, v, log_decay, kappa, a = (
            repeat_heads(streams[s], heads) for s in ("k", "v", "log_decay", "removal", "rate")
        )
        return Recurrence(q=streams["q"], k=k, v=v, log_decay=log_decay, a=-a * kappa, b=kappa)

    def after(self, o, streams):
        """Each head is normalized; the token's own value is added, weighted by r (ρ ⊙ k̃)ᵀ; then the gate."""
        heads = self.geometry.heads
        r, k, v = (repeat_heads(streams[s], heads).astype(o.dtype) for s in "qkv")
        own = jnp.sum(r * self.bonus[...].astype(o.dtype)[None, None] * k, axis=-1, keepdims=True) * v
        o = self.norm(o) * self.norm_scale[...][None, None] + self.norm_bias[...][None, None]
        return (o + own) * streams["gate"]

    def init_state(self, batch):
        return super().init_state(batch) | {"previous": self.previous.init_state(batch)}

    def projection_flops(self, batch, length):
        down, up = (
            (self.decay_down, self.rate_down, self.gate_down),
            (self.decay_up, self.rate_up, self.gate_up),
        )
        return super().projection_flops(batch, length) + linear_flops(batch * length, *down, *up)
