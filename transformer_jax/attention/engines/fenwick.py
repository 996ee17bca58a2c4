"""A linear recurrence that keeps, instead of one state, one for each level of a Fenwick tree.

    o_t = Σ_ℓ λ_t^(ℓ) S_t^(ℓ)ᵀ q_t,    S_t^(ℓ) = Σ_{s: ℓ(t, s) = ℓ} (D_t … D_{s+1}) k_s v_sᵀ

The level ℓ(t, s) is the number of bits of t xor s, counted from the start of the segment: 0 for the token
itself, and twice as many tokens from each level to the next. Within a chunk pairs are weighed by λ at
their level. Between chunks, the state of level ℓ at token e is seen from a later t at the level
max(ℓ, m), m = ℓ(t, e): all of its tokens lie on one side of the highest bit in which t and e differ.

Of a whole row cut at powers of two this is simpler: no level below that of a chunk is seen from another one,
and the levels within are the same in each.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from transformer_jax.attention.contract import Layout, State
from transformer_jax.attention.engines.chunks import in_chunks
from transformer_jax.attention.engines.decay import decayed

CHUNK = 64


def level(t: jax.Array, s: jax.Array) -> jax.Array:
    """ℓ(t, s), broadcasting."""
    different = jnp.bitwise_xor(t.astype(jnp.uint32), s.astype(jnp.uint32))
    return 32 - jax.lax.clz(different).astype(jnp.int32)


def levels(length: int) -> int:
    """How many levels a sequence of `length` tokens has."""
    return (length - 1).bit_length() + 1


def mix(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    *,
    log_decay: jax.Array,
    weight: jax.Array,
    layout: Layout,
    state: State | None = None,
    chunk: int = CHUNK,
) -> tuple[jax.Array, State | None]:
    """o (B, T, N, M) in float32 at least, and the state after each row's last valid token; without a state,
    and without documents packed into a row, it returns none.

    Args:
      q, k: (B, T, N, H). v: (B, T, N, M).
      log_decay: (B, T, N), log D of each head; −inf forgets.
      weight: (B, T, N, levels), λ.
      chunk: tokens in parallel, a power of two; no result depends on it.
    """
    batch, length, heads, size = k.shape
    real = jnp.promote_types(jnp.float32, q.dtype)
    deep = weight.shape[-1]
    if state is None and layout.segments is None:
        if layout.valid is not None:
            v = jnp.where(layout.valid[..., None, None], v, 0)
        return _whole_rows(*(x.astype(real) for x in (q, k, v, log_decay, weight)), chunk=chunk), None
    state = empty(batch, heads, deep, size, v.shape[-1], real) if state is None else state
    valid, starts = layout.valid, layout.starts(state["segment"])
    if valid is not None:
        v = jnp.where(valid[..., None, None], v, 0)
        log_decay = jnp.where(valid[..., None], log_decay, 0)
        starts = None if starts is None else starts & valid
    if starts is not None:
        log_decay = jnp.where(starts[..., None], -jnp.inf, log_decay)

    def each_head(x):
        return jnp.repeat(x, heads, axis=0)

    def body(carry, x):
        S, last = carry  # (B·N, levels, H, M), (B,)
        (q, k, v, log_decay, weight), at, valid = x
        q, k, v, log_decay, weight = (_heads_first(x.astype(real)) for x in (q, k, v, log_decay, weight))
        pairs = each_head(level(at[:, :, None], at[:, None]))
        D = decayed(log_decay, [(q, "after")], [k])
        inner = D.inner[0][0] * _picked(weight, pairs)
        seen_at = jnp.maximum(jnp.arange(deep)[None, None], level(at, last[:, None])[..., None])
        read = _picked(weight, each_head(seen_at))[..., None] * D.carried[0][:, :, None]
        o = jnp.einsum("rtlh,rlhm->rtm", read, S) + jnp.einsum("rts,rsm->rtm", inner, v)
        some = jnp.sum(valid, axis=1)
        end = jnp.take_along_axis(at, jnp.maximum(some - 1, 0)[:, None], axis=1)[:, 0]
        end = jnp.where(some > 0, end, last)
        merged = each_head(level(end, last))[:, None, None, None]
        which = jnp.arange(deep)[None, :, None, None]
        below = jnp.sum(jnp.where(which <= merged, S, 0), axis=1, keepdims=True)
        S = jnp.where(which > merged, S, jnp.where(which == merged, below, 0))
        mine = each_head(level(end[:, None], at))[..., None] == jnp.arange(deep)[None, None]
        written = jnp.where(mine[..., None], D.remaining[0][:, :, None], 0)
        S = D.whole[:, None] * S + jnp.einsum("rslh,rsm->rlhm", written, v)
        return (S, end), jnp.moveaxis(o.reshape(batch, heads, *o.shape[1:]), 1, 2)

    S = state["S"].reshape(batch * heads, deep, size, -1).astype(real)
    valid = jnp.ones((batch, length), bool) if valid is None else valid
    streams = ((q, k, v, log_decay, weight), layout.positions.astype(jnp.int32), valid)
    o, (S, last) = in_chunks(body, streams, (S, state["last"]), length=length, chunk=chunk)
    moved = {"S": S.reshape(state["S"].shape), "last": last, "segment": layout.last_segment(state["segment"])}
    return o, moved


def empty(batch: int, heads: int, deep: int, size: int, values: int, dtype) -> State:
    """The state before the first token: S (B, N, levels, H, M), the last token's place and segment (B,)."""
    return {
        "S": jnp.zeros((batch, heads, deep, size, values), dtype),
        "last": jnp.zeros((batch,), jnp.int32),
        "segment": jnp.full((batch,), -1, jnp.int32),
    }


def flops(batch: int, length: int, heads: int, size: int, values: int, chunk: int = CHUNK) -> int:
    """Matrix-product FLOPs of `mix` without a state."""
    n, chunks, near, far = _cut(length, chunk)
    return 2 * batch * heads * chunks * n * (n * (size + values + near) + (far + 1) * size * values)


def _cut(length: int, chunk: int) -> tuple[int, int, int, int]:
    """Tokens in a chunk, chunks, levels within one, and levels beyond."""
    n = min(chunk, 1 << (length - 1).bit_length())
    chunks = -(-length // n)
    return n, chunks, n.bit_length(), (chunks - 1).bit_length()


def _whole_rows(q, k, v, log_decay, weight, *, chunk: int) -> jax.Array:
    """`mix` of tokens 0, 1, …, of every row. S holds of each level beyond the chunk the chunks before: level
    near + l those whose number differs from this chunk's in bit l at the highest."""
    batch, length, heads, size = k.shape
    n, chunks, near, far = _cut(length, chunk)
    more = max(0, near + far - weight.shape[-1])  # the deepest λ serves what is deeper still
    weight = jnp.pad(weight, ((0, 0),) * 3 + ((0, more),), mode="edge")[..., : near + far]
    streams = jax.tree.map(
        lambda x: jnp.pad(x, ((0, 0), (0, chunks * n - length)) + ((0, 0),) * (x.ndim - 2)),
        (q, k, v, log_decay, weight),
    )
    t = np.arange(n)
    bits = np.frexp(t[:, None] ^ t[None])[1]  # how many has t xor s
    which = jnp.asarray(bits[..., None] == np.arange(near), q.dtype)
    beyond = jnp.arange(far)[None, None, :, None]

    def body(carry, x):
        S, c = carry  # (B·N, H, far, M), ()
        q, k, v, log_decay, weight = map(_heads_first, x)
        D = decayed(log_decay, [(q, "after")], [k])
        inner = D.inner[0][0] * jnp.einsum("rtl,tsl->rts", weight[..., :near], which)
        read = jnp.einsum("rth,rhlm->rtlm", D.carried[0], S)
        o = jnp.sum(weight[..., near:, None] * read, axis=2) + jnp.einsum("rts,rsm->rtm", inner, v)
        S = D.whole[..., None] * S
        # From the next chunk this one, and those that differ from it in a lower bit only, differ in bit l.
        l = level(c + 1, c) - 1
        joined = jnp.einsum("rsh,rsm->rhm", D.remaining[0], v)[:, :, None]
        joined += jnp.sum(jnp.where(beyond < l, S, 0), axis=2, keepdims=True)
        S = jnp.where(beyond > l, S, jnp.where(beyond == l, joined, 0))
        return (S, c + 1), jnp.moveaxis(o.reshape(batch, heads, *o.shape[1:]), 1, 2)

    S = jnp.zeros((batch * heads, size, far, v.shape[-1]), q.dtype)
    o, _ = in_chunks(body, streams, (S, jnp.zeros((), jnp.int32)), length=chunks * n, chunk=n)
    return o[:, :length]


def _heads_first(x: jax.Array) -> jax.Array:
    """(B, n, N, …) → (B·N, n, …)."""
    x = jnp.moveaxis(x, 2, 1)
    return x.reshape(-1, *x.shape[2:])


def _picked(weight: jax.Array, at: jax.Array) -> jax.Array:
    """λ (R, n, levels) at the levels (R, n, …)."""
    return jnp.take_along_axis(weight, jnp.minimum(at, weight.shape[-1] - 1), axis=-1)
