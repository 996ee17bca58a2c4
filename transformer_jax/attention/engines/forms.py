"""Every linear recurrence that a mechanism may ask for, brought to the one form of `recurrence.py`.

    S_t = D_t S_{t−1} + a_t (b_tᵀ S_{t−1}) + e^{g_t} k_t v_tᵀ,    o_t = S_tᵀ q_t

with R micro-steps per token, signed decays, a normalizer, a bonus for the current token. The reductions:
signs move into the streams; a normalizer is one more value channel, of ones; the log gain g is divided by
its decayed running maximum e^{m_t} (the stabilizer of arXiv:2405.04517, equation 15); a new segment
forgets; padding writes nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Literal

import jax
import jax.numpy as jnp

from transformer_jax.attention.contract import Layout, State
from transformer_jax.attention.engines import recurrence
from transformer_jax.attention.engines.decay import Reads
from transformer_jax.attention.engines.recurrence import Steps
from transformer_jax.errors import BadInput
from transformer_jax.parallel.mesh import cuts_sequence
from transformer_jax.parallel.sequence import Shards, composed_before

Normalizer = Literal["none", "sum", "bounded"]


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class Recurrence:
    """Streams of a linear recurrence. Those of a micro-step have T·R in the place of T.

    Attributes:
      q: (B, T, N, H).
      k: (B, T·R, N, H). v: (B, T·R, N, M).
      log_decay: log |D|, None for the identity, (B, T·R, N) or (B, T·R, N, H); −inf forgets.
      sign: of D, ±1 in the shape of log_decay, or None; a constant to the gradient.
      a: (B, T·R, N, H), or (B, T·R, N) for a multiple of k, as in the delta rule. b: (B, T·R, N, H).
        Both or neither; b reads the state before it decays.
      bonus: (N, H), u of o_t = (S_{t−1} + diag(u) k_t v_tᵀ)ᵀ q_t, which replaces S_t (R = 1).
      log_gain: (B, T·R, N), g above.
      normalizer: of o_t = S_tᵀ q_t, given the same z_t for v = 1: "none"; "sum" o / z;
        "bounded" o / max(|z|, 1) (arXiv:2405.04517, equation 21).
    """

    q: jax.Array
    k: jax.Array
    v: jax.Array
    log_decay: jax.Array | None = None
    sign: jax.Array | None = None
    a: jax.Array | None = None
    b: jax.Array | None = None
    bonus: jax.Array | None = None
    log_gain: jax.Array | None = None
    normalizer: Normalizer = field(default="none", metadata={"static": True})

    def __post_init__(self):
        if (self.a is None) != (self.b is None):
            raise BadInput("A correction of the state needs both a and b: give both, or neither.")
        if not hasattr(self.k, "shape"):  # JAX makes trees of other things in this form too
            return
        if self.bonus is not None and (self.log_gain is not None or self.k.shape[1] != self.q.shape[1]):
            raise BadInput("A bonus goes with one micro-step per token and no log_gain: drop one of them.")

    @property
    def sums(self) -> bool:
        """Whether nothing is ever forgotten or corrected: o_t is a sum over the keys that it sees."""
        return self.log_decay is None and self.a is None and self.bonus is None


def recur(
    r: Recurrence, layout: Layout, state: State | None = None, chunk: int | None = None
) -> tuple[jax.Array, State]:
    """Causal: o (B, T, N, M) in float32 at least, and the state after each row's last valid token."""
    if state is None and cuts_sequence():
        return _on_shards(_one_way, r, layout.starts(empty_state(r)["segment"]), layout.valid, chunk), {}
    state = empty_state(r) if state is None else state
    o, m, moved = _forward(r, layout.starts(state["segment"]), layout.valid, chunk, state)
    return _normalized(o, m, r.normalizer), moved | {"segment": layout.last_segment(state["segment"])}


def recur_both_ways(r: Recurrence, layout: Layout, chunk: int | None = None) -> jax.Array:
    """Bidirectional: the sum over all keys of the segment; where the state decays or is corrected,
    forward plus reversed, each of which sees the token itself."""
    if r.sums and layout.segments is None:
        return _everything(r, layout.valid)
    borders = layout.starts(), layout.ends()
    if cuts_sequence():
        return _on_shards(_both_ways, r, borders, layout.valid, chunk)
    return _both_ways(_forward, r, borders, layout.valid, chunk)


def _on_shards(f: Callable, r: Recurrence, borders, valid, chunk: int | None) -> jax.Array:
    """f(_forward, r, borders, valid, chunk), each device with its shard of the sequence."""
    shards = Shards.of(r.q.shape[0], r.q.shape[2])
    cut = {"bonus": shards.weights}
    where = jax.tree_util.tree_map_with_path(lambda path, x: cut.get(path[0].name, shards.streams)(x), r)
    tokens = borders, valid
    return shards.run(
        lambda r, tokens: f(_forward_on_shard, r, *tokens, chunk),
        (r, where),
        (tokens, shards.streams(tokens)),
        out=shards.streams(r.q),
    )


def _one_way(forward: Callable, r: Recurrence, starts, valid, chunk: int | None) -> jax.Array:
    o, m, _ = forward(r, starts, valid, chunk)
    return _normalized(o, m, r.normalizer)


def _both_ways(forward: Callable, r: Recurrence, borders, valid, chunk: int | None) -> jax.Array:
    flip = lambda x: None if x is None else x[:, ::-1]
    starts, ends = borders
    o, m, _ = forward(r, starts, valid, chunk)
    o_back, m_back, _ = forward(_reversed(r), flip(ends), flip(valid), chunk, reverse=True)
    o_back, m_back = flip(o_back), flip(m_back)
    if not r.sums:
        return _normalized(o, m, r.normalizer) + _normalized(o_back, m_back, r.normalizer)
    # Both directions hold the token itself: once too often.
    own = r if valid is None else replace(r, v=jnp.where(valid[..., None, None], r.v, 0))
    o_own = jnp.einsum("btnh,btnh->btn", r.q, r.k)[..., None] * _values(own)
    if m is None:
        return _normalized(o + o_back - o_own, None, r.normalizer)
    top = jnp.maximum(m, m_back)
    top = jnp.where(top == -jnp.inf, 0, top)
    scale = lambda o, m: o * jnp.exp(m - top)[..., None]
    gain = r.log_gain if valid is None else jnp.where(valid[..., None], r.log_gain, -jnp.inf)
    return _normalized(scale(o, m) + scale(o_back, m_back) - scale(o_own, gain), top, r.normalizer)


def empty_state(r: Recurrence) -> State:
    """The state before the first token: S (B, N, H, M), with a normalizer M + 1; m (B, N) where gains
    are stabilized; segment (B,). Only shapes are read."""
    batch, _, heads, size = r.k.shape
    dtype = jnp.promote_types(jnp.float32, r.q.dtype)
    state = {
        "S": jnp.zeros((batch, heads, size, r.v.shape[-1] + (r.normalizer != "none")), dtype),
        "segment": jnp.full((batch,), -1, jnp.int32),
    }
    return state if r.log_gain is None else state | {"m": jnp.full((batch, heads), -jnp.inf, dtype)}


def recurrence_flops(r: Recurrence, direction: str, chunk: int | None = None) -> int:
    """Matrix-product FLOPs of one plain call; only shapes are read."""
    if direction == "bidirectional" and r.sums:
        batch, length, heads, size = r.q.shape
        return 2 * batch * heads * size * (length + r.k.shape[1]) * (r.v.shape[-1] + (r.normalizer != "none"))
    steps = jax.eval_shape(lambda r: _steps(r, None, None, lambda own: own[1])[0], r)
    return recurrence.flops(steps, chunk) * (1 if direction == "causal" else 2)


def _forward(
    r: Recurrence, starts, valid, chunk: int | None, state: State | None = None, *, reverse: bool = False
):
    """(o before normalization, m (B, T, N) or None, state). What is to run in `reverse` is so already."""
    state = empty_state(r) if state is None else state
    steps = _steps(r, starts, valid, lambda own: state["m"])
    return _executed(r, steps, valid, state["S"], chunk)


def _forward_on_shard(r: Recurrence, starts, valid, chunk: int | None, *, reverse: bool = False):
    """`_forward` of a shard, from the state that those before it leave: they pass on what they make of any
    state, and then each runs from its own. The stabilizer goes ahead, as states are divided by it."""

    def earlier(own):
        nothing = jnp.zeros_like(own[0]), jnp.full_like(own[1], -jnp.inf)
        return composed_before(_later, own, nothing, reverse=reverse)[1]

    brought = steps, _, sign = _steps(r, starts, valid, earlier)
    A, S = (_signed(sign, x) for x in recurrence.summary(steps, chunk))
    nothing = recurrence.nothing((A, S))
    _, S = composed_before(recurrence.composed, (A, S), nothing, reverse=reverse)
    return _executed(r, brought, valid, S, chunk)


def _executed(r: Recurrence, brought: tuple, valid, S: jax.Array, chunk: int | None):
    """`brought` is what `_steps` gives."""
    steps, m, sign = brought
    o, S = recurrence.run(steps, S, chunk)
    if r.bonus is not None:
        own = jnp.sum(r.q * r.bonus[None, None].astype(r.q.dtype) * r.k, axis=-1, keepdims=True)
        v = _values(r)
        o = o + own * (v if valid is None else jnp.where(valid[..., None, None], v, 0))
    S = _signed(sign, S)
    if m is None:
        return o, None, {"S": S}
    return o, m[:, steps.micro - 1 :: steps.micro], {"S": S, "m": m[:, -1]}


def _signed(sign: jax.Array | None, x: jax.Array) -> jax.Array:
    """x (B, N, H or 1, …) with the sign that all of the steps give it."""
    if sign is None:
        return x
    return x * sign[:, -1].reshape(*sign.shape[:1], *sign.shape[2:], *(1,) * (5 - sign.ndim))


def _steps(r: Recurrence, starts, valid, earlier: Callable):
    """The steps of the one form, with m (B, T·R, N) and the cumulative sign, or None for each. `earlier` is
    that of `stabilizer`."""
    q, k, v, log_decay, sign, a, b, gain = (
        r.q, r.k, _values(r), r.log_decay, r.sign, r.a, r.b, r.log_gain,
    )  # fmt: skip
    micro = k.shape[1] // q.shape[1]

    def where(condition, x, other):
        return jnp.where(condition.reshape(condition.shape + (1,) * (x.ndim - 2)), x, other)

    if valid is not None:
        written = jnp.repeat(valid, micro, axis=1)
        v = where(written, v, 0)
        a = None if a is None else where(written, a, 0)
        log_decay = None if log_decay is None else where(written, log_decay, 0)
        sign = None if sign is None else where(written, sign, 1)
        gain = None if gain is None else where(written, gain, -jnp.inf)
    if starts is not None:
        starts = starts if valid is None else starts & valid
        if r.bonus is not None:
            q = where(starts, jnp.zeros_like(q), q)
        first = jnp.zeros((*starts.shape, micro), bool).at[:, :, 0].set(starts)
        first = first.reshape(first.shape[0], -1)
        a = None if a is None else where(first, jnp.zeros_like(a), a)
        log_decay = jnp.zeros(k.shape[:3], jnp.float32) if log_decay is None else log_decay
        log_decay = where(first, jnp.full_like(log_decay, -jnp.inf), log_decay)
    m = None
    if gain is not None:
        log_decay = jnp.zeros_like(gain) if log_decay is None else log_decay
        m, shift, rest = stabilizer(log_decay, gain, earlier)
        log_decay = log_decay + (shift if log_decay.ndim == 3 else shift[..., None])
        v = v * rest[..., None]
        a = None if a is None else a * jnp.exp(shift if a.ndim == 3 else shift[..., None])
    if sign is not None:
        sign = jax.lax.associative_scan(jnp.multiply, jax.lax.stop_gradient(sign), axis=1)
        before = jnp.concatenate([jnp.ones_like(sign[:, :1]), sign[:, :-1]], axis=1)
        wide = lambda s: (s if s.ndim == 4 else s[..., None]).astype(k.dtype)
        read = before[:, ::micro] if r.bonus is not None else sign[:, micro - 1 :: micro]
        q, k = q * wide(read), k * wide(sign)
        a = a if a is None or a.ndim == 3 else a * wide(sign)
        b = None if b is None else b * wide(before)
    reads: Reads = "after" if r.bonus is None else "before"
    return Steps(q=q, k=k, v=v, log_decay=log_decay, a=a, b=b, reads=reads), m, sign


def stabilizer(log_decay, gain, earlier: Callable):
    """m_t = max(log D_t + m_{t−1}, g_t); also m_{t−1} − m_t and e^{g_t − m_t}, all (B, T, N).

    `earlier` gives m (B, N) before the first step from (Σ log D, the largest that g left), both (B, N).
    The normalized output does not depend on m, so no gradient flows through it.
    """
    accurate = jnp.promote_types(jnp.float32, gain.dtype)
    log_decay, gain = jax.lax.stop_gradient(log_decay).astype(accurate), gain.astype(accurate)
    if log_decay.ndim == 4:
        log_decay = jnp.max(log_decay, axis=-1)
    kept, top = jax.lax.associative_scan(_later, (log_decay, jax.lax.stop_gradient(gain)), axis=1)
    m = earlier((kept[:, -1], top[:, -1]))
    after = jnp.maximum(kept + m[:, None], top)
    before = jnp.concatenate([m[:, None], after[:, :-1]], axis=1)
    # While nothing was written m is −inf, and any finite number serves.
    finite = lambda m: jnp.where(m == -jnp.inf, 0, m)
    shift = jnp.where(before == -jnp.inf, -jnp.inf, before - finite(after))
    return after, shift, jnp.exp(gain - finite(after))


def _later(first, second):
    """The map m → max(m + kept, top) of two stretches, one after the other."""
    return first[0] + second[0], jnp.maximum(first[1] + second[0], second[1])


def _values(r: Recurrence) -> jax.Array:
    """v, with a channel of ones where a normalizer is carried."""
    if r.normalizer == "none":
        return r.v
    return jnp.concatenate([r.v, jnp.ones_like(r.v[..., :1])], axis=-1)


def _normalized(o: jax.Array, m: jax.Array | None, normalizer: Normalizer) -> jax.Array:
    if normalizer == "none":
        return o if m is None else o * jnp.exp(m)[..., None]
    o, z = o[..., :-1], o[..., -1:]
    if normalizer == "bounded":
        z = jnp.maximum(jnp.abs(z), 1 if m is None else jnp.exp(-m)[..., None])
    # Nothing seen, as in a row of padding, gives 0; so does a sum whose square underflows in the gradient.
    some = jnp.abs(z) > float(jnp.finfo(z.dtype).tiny) ** 0.5
    return jnp.where(some, o / jnp.where(some, z, 1), 0)


def _everything(r: Recurrence, valid) -> jax.Array:
    """Σ_s e^{g_s} (q_tᵀ k_s) v_s over all s, normalized; k and v may have a length of their own."""
    dtype = jnp.promote_types(jnp.float32, r.q.dtype)
    v, m = _values(r).astype(dtype), None
    if valid is not None:
        v = jnp.where(valid[..., None, None], v, 0)
    if r.log_gain is not None:
        gain = r.log_gain if valid is None else jnp.where(valid[..., None], r.log_gain, -jnp.inf)
        top = jax.lax.stop_gradient(jnp.max(gain, axis=1, keepdims=True))
        m = jnp.where(top == -jnp.inf, 0, top)
        v = v * jnp.exp(gain - m)[..., None]
    S = jnp.einsum("bsnh,bsnm->bnhm", r.k.astype(dtype), v)
    return _normalized(jnp.einsum("btnh,bnhm->btnm", r.q.astype(dtype), S), m, r.normalizer)


def _reversed(r: Recurrence) -> Recurrence:
    """Tokens in reversed order, each with its micro-steps in theirs."""
    length = r.q.shape[1]

    def flip(x):
        if x is None:
            return None
        tokens = x.reshape(x.shape[0], length, -1, *x.shape[2:])
        return tokens[:, ::-1].reshape(x.shape)

    names = ("q", "k", "v", "log_decay", "sign", "a", "b", "log_gain")
    return replace(r, **{name: flip(getattr(r, name)) for name in names})
