"""A diagonal state space, the same at all times, on the products of keys and values, within chunks.

    S_{t,p} = e^{a_p} S_{t−1,p} + k_t v_tᵀ,    o_t = Re Σ_p c_p S_{t,p}ᵀ q_t + d v_t (k_tᵀ q_t)

with P complex states for every entry of k vᵀ. So o_t = Σ_{s≤t} κ(t − s) (q_tᵀ k_s) v_s with the kernel
κ(j) = Re Σ_p c_p e^{j a_p}, and κ(0) larger by d: within a chunk it is attention under κ, between chunks
it is the states, real and imaginary parts side by side. Re a < 0, so no power grows.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from transformer_jax.attention.contract import Layout, State
from transformer_jax.attention.engines.chunks import cut, in_chunks

CHUNK = 32


def mix(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    *,
    a: jax.Array,
    c: jax.Array,
    d: jax.Array,
    layout: Layout,
    state: State | None = None,
    chunk: int = CHUNK,
) -> tuple[jax.Array, State]:
    """o (B, T, N, M) in float32 at least, and the state after each row's last valid token.

    Args:
      q, k: (B, T, N, H). v: (B, T, N, M).
      a, c: (N, P) complex, with Re a < 0. d: (N,).
      chunk: tokens in parallel; no result depends on it.
    """
    batch, length, heads, size = k.shape
    real = jnp.promote_types(jnp.float32, q.dtype)
    state = empty(batch, heads, a.shape[-1], size, v.shape[-1], real) if state is None else state
    valid = jnp.ones((1, length), bool) if layout.valid is None else layout.valid
    # The number of each token's segment, counted from that of the state.
    starts, segment = layout.starts(state["segment"]), None
    if starts is not None:
        segment = jnp.cumsum(starts & valid, axis=1, dtype=jnp.int32)

    _, n = cut(length, chunk)
    at = jnp.arange(n)
    powers = jnp.exp(a[None] * at[:, None, None])  # (n, N, P)
    kernel = jnp.sum(jnp.real(c[None] * powers), axis=-1).at[0].add(d)
    lag = at[:, None] - at[None]
    weight = jnp.where(lag[..., None] >= 0, kernel[jnp.maximum(lag, 0)], 0).transpose(2, 0, 1)  # (N, n, n)
    read = _parts(jnp.conj(c[None] * powers * jnp.exp(a)[None]))  # (n, N, 2P): Re(c S) = (Re c̄, Im c̄) · S

    def body(carry, x):
        S, current = carry
        (q, k, v), valid, segment = x
        q, k, v = (x.astype(real) for x in (q, k, v))
        v = jnp.where(valid[..., None, None], v, 0)
        valid = jnp.sum(valid, axis=1)
        scores = jnp.einsum("btnh,bsnh->bnts", q, k) * weight[None]
        found = jnp.einsum("btnph,bnphm->btnm", read[None, ..., None] * q[:, :, :, None], S)
        written = v
        if segment is not None:
            last = jnp.max(segment, axis=1)
            scores = jnp.where((segment[:, :, None] == segment[:, None])[:, None], scores, 0)
            found = jnp.where((segment == current[:, None])[..., None, None], found, 0)
            written = jnp.where((segment == last[:, None])[..., None, None], v, 0)
            S = jnp.where((last == current)[:, None, None, None, None], S, 0)
            current = last
        o = found + jnp.einsum("bnts,bsnm->btnm", scores, v)
        since = jnp.maximum(valid[:, None] - 1 - at[None], 0)[..., None, None]
        decayed = _parts(jnp.exp(a[None, None] * since))  # (B or 1, n, N, 2P)
        S = _turned(S, jnp.exp(a[None] * valid[:, None, None]))
        S = S + jnp.einsum("bsnph,bsnm->bnphm", decayed[..., None] * k[:, :, :, None], written)
        return (S, current), o

    first = (state["S"].astype(real), jnp.zeros((batch,), jnp.int32))
    o, (S, _) = in_chunks(body, ((q, k, v), valid, segment), first, length=length, chunk=chunk)
    return o, {"S": S, "segment": layout.last_segment(state["segment"])}


def empty(batch: int, heads: int, states: int, size: int, values: int, dtype) -> State:
    """The state before the first token: S (B, N, 2P, H, M), segment (B,)."""
    return {
        "S": jnp.zeros((batch, heads, 2 * states, size, values), dtype),
        "segment": jnp.full((batch,), -1, jnp.int32),
    }


def flops(
    batch: int, length: int, heads: int, states: int, size: int, values: int, chunk: int = CHUNK
) -> int:
    """Matrix-product FLOPs of `mix`."""
    chunks, n = cut(length, chunk)
    inside, between = n * (size + values), 4 * states * size * values
    return 2 * batch * heads * chunks * n * (inside + between)


def _parts(x: jax.Array) -> jax.Array:
    """(…, P) complex → (…, 2P) real."""
    return jnp.concatenate([jnp.real(x), jnp.imag(x)], axis=-1)


def _turned(S: jax.Array, by: jax.Array) -> jax.Array:
    """S (B, N, 2P, H, M), whose halves are real and imaginary part, times `by` (B or 1, N, P)."""
    re, im = jnp.split(S, 2, axis=2)
    x, y = jnp.real(by)[..., None, None], jnp.imag(by)[..., None, None]
    return jnp.concatenate([x * re - y * im, x * im + y * re], axis=2)
