"""AFT-simple: a running softmax of every key channel over time, gated by the query."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from transformer_jax.attention.contract import Capability, Layout, State
from transformer_jax.attention.core import repeat_heads
from transformer_jax.attention.engines.forms import stabilizer
from transformer_jax.attention.engines.pool import over_positions, pooled
from transformer_jax.attention.engines.scan import scan
from transformer_jax.attention.heads import HeadMixer


class AFTSimple(HeadMixer):
    """An attention free transformer (arXiv:2105.14103), AFT-simple: without position biases.

    Every channel is mixed by itself, so heads mean nothing but N·H channels; with fewer key-value heads,
    each channel of k and v serves N/K successive ones of q. Keys are not scaled. The largest key so far is
    divided out, so that no exponential overflows, and decoding keeps it with the two sums. A channel cannot
    be rotated: a model's rotary embedding is not applied.
    """

    name = "aft_simple"
    family = "element-wise scan"
    paper = "arXiv:2105.14103"
    time = "T"
    state = "1"
    capability = Capability(notes={"bidirectional": "every token sees one and the same sum"})

    @property
    def mixed_heads(self):
        return self.geometry.heads * self.geometry.head_size

    def definition(self, q, k, v):
        """Y_t = σ(Q_t) ⊙ Σ_t' exp(K_t') ⊙ V_t' / Σ_t' exp(K_t'), over all t' or, causal, those to t:
        equation 5 (section 3.2), which is equation 2 with w = 0."""
        seen = jnp.ones((len(q), len(k)), bool)
        if self.geometry.causal:
            seen = jnp.tril(seen)
        weights = jax.nn.softmax(jnp.where(seen, k[None], -jnp.inf), axis=-1)
        return jax.nn.sigmoid(q)[:, None] * (weights @ v)

    def streams(self, x, layout, state=None, context=None):
        source = x if context is None else context
        return {"q": self.query(x), "k": self.key(source), "v": self.value(source)[..., None]}, {}

    def core(self, streams, layout, state):
        exact = jnp.promote_types(jnp.float32, streams["v"].dtype)
        q, k, v = (streams[name].astype(exact) for name in ("q", "k", "v"))
        if self.geometry.causal:
            o, state = running(k, v, layout, state)
        else:
            o, state = pooled("sum", over_positions(k, layout)[..., None] * v, layout), {}
        return jax.nn.sigmoid(q)[..., None] * repeat_heads(o, self.mixed_heads), state

    def init_state(self, batch):
        return empty_state(batch, self.key.out_features, jnp.dtype(self.geometry.dtype))

    def core_flops(self, batch, length):
        return 0


def running(k: jax.Array, v: jax.Array, layout: Layout, state: State | None) -> tuple[jax.Array, State]:
    """Σ_{t' ≤ t} exp(K_t') V_t' / Σ_{t' ≤ t} exp(K_t') within a segment: k (B, T, C), v (B, T, C, M)."""
    state = empty_state(k.shape[0], k.shape[2], k.dtype, v.shape[3]) if state is None else state
    starts, log_decay = layout.starts(state["segment"]), jnp.zeros_like(k)
    if layout.valid is not None:
        k = jnp.where(layout.valid[..., None], k, -jnp.inf)
        starts = None if starts is None else starts & layout.valid
    if starts is not None:
        log_decay = jnp.where(starts[..., None], -jnp.inf, log_decay)
    m, shift, e = stabilizer(log_decay, k, lambda own: state["m"])
    terms = e[..., None] * jnp.concatenate([v, jnp.ones_like(v[..., :1])], axis=-1)
    sums, last = scan(jnp.exp(log_decay + shift)[..., None], terms, state["sums"])
    o, z = sums[..., :-1], sums[..., -1:]
    segment = layout.last_segment(state["segment"])
    return o / jnp.where(z > 0, z, 1), {"sums": last, "m": m[:, -1], "segment": segment}


def empty_state(batch: int, channels: int, dtype: jnp.dtype, values: int = 1) -> State:
    """Before the first token: the two sums, the largest key so far, and the segment."""
    dtype = jnp.promote_types(jnp.float32, dtype)
    return {
        "sums": jnp.zeros((batch, channels, values + 1), dtype),
        "m": jnp.full((batch, channels), -jnp.inf, dtype),
        "segment": jnp.full((batch,), -1, jnp.int32),
    }
