"""The delta rule with no decay, or one decay per head, on a TPU: a kernel of our own in Pallas.

    w_t = v_t + S_{t−1}ᵀ b_t,    S_t = d_t S_{t−1} + k_t w_tᵀ,    o_t = S_tᵀ q_t,    d_t = e^{g_t}

It must equal `transformer_jax.attention.engines.recurrence.run` with a correction a_t k_t (b_tᵀ S_{t−1}),
whose a is brought into b before the kernel. Chunks, blocks of 128 tokens, rows, G and L are those of
`transformer_jax.kernels.recurrence`. Once w is known the delta rule is that recurrence with w for v; within a
block, S the state before it,

    (I − N) W = V + e^{G_{t−1}} ∘ (b S),    N_ts = (b_t k_s) e^{G_{t−1} − G_s} for s < t, else 0,

the WY form of arXiv:2406.06484, section 3.2, with the decay of arXiv:2412.06464, section 3.3. The inverse of
the unit triangular I − N is made by joining the inverses of diagonal blocks in pairs, (I − N)⁻¹ of 1, 2, 4,
… 128 tokens: nothing grows beyond the inverse itself, as powers of N do when keys repeat.

The backward pass is seven calls of the same two kernels, two of this one and five of the other. With P_t the
cotangent of S_t from what comes after t,

    w̄_t = r_t + Σ_{s>t} (k_t b_s) e^{G_{s−1} − G_t} w̄_s,    r_t = Σ_{s≥t} (k_t q_s) L_st ō_s:

r is a recurrence from the last token to the first and w̄ a delta rule, where b and k have changed places. The
rest are sums with known w and w̄: q̄_t = S_t ō_t, b̄_t = S_{t−1} w̄_t, k̄_t = (P_t + q_t ō_tᵀ) w_t. And as only
differences of G occur, Ḡ_t = q_t q̄_t − k_t k̄_t + b_{t+1} b̄_{t+1}.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import jax
import jax.numpy as jnp
from jax import lax

from transformer_jax.kernels import recurrence as plain
from transformer_jax.kernels.recurrence import BLOCK, BORDER, SUBLANES, over_values, spread

NAME = "delta"
ROWS = 2
"""Rows of a step of the grid, at most. Compilation takes longer with more."""


def refusal(q, k, v, log_decay, a) -> str:
    """Why the kernel cannot take (B, T, N, H), (B, T, N, H), (B, T, N, M), (B, T, N) or None and (B, T, N);
    empty where it can."""
    if a.ndim > 3:
        return "the kernel corrects the state by multiples of k"
    return plain.refusal(q, k, v, log_decay)


def run(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    log_decay: jax.Array | None,
    a: jax.Array,
    b: jax.Array,
    S: jax.Array,
    *,
    interpret: bool = False,
) -> tuple[jax.Array, jax.Array]:
    """o (B, T, N, M), in the dtype of q, and the state (B, N, H, M) after the last token, in float32.

    Args:
      q, k: (B, T, N, H). v: (B, T, N, M).
      a: (B, T, N) and b: (B, T, N, H) of what is added, a_t k_t (b_tᵀ S_{t−1}). k, v and a_t b_t are rounded
        to the dtype of q.
      log_decay: g (B, T, N), −inf to forget; None for no decay.
      S: (B, N, H, M), the state before the first token.
      interpret: by JAX, on any device.
    """
    batch, _, heads, _ = q.shape
    b = a.astype(jnp.float32)[..., None] * b
    g = None if log_decay is None else plain.by_row(log_decay).astype(jnp.float32)
    q, b, k, v = (plain.by_row(x.astype(q.dtype)) for x in (q, b, k, v))
    o, last = delta(interpret, q, b, k, v, g, S.reshape(batch * heads, *S.shape[2:]).astype(jnp.float32))
    return plain.by_head(o, heads), last.reshape(S.shape)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def delta(interpret, q, b, k, v, g, S):
    """o (L, T, M) and the last state (L, H, M) of L rows: q, b, k (L, T, H), v (L, T, M), g (L, T) or
    None."""
    return forward(interpret, [q, b], k, v, g, S)


def _remembered(interpret, q, b, k, v, g, S):
    o, last = forward(interpret, [q, b], k, v, g, S)
    return (o, last), (q, b, k, v, g, S, last)


def _backward(interpret, saved, cotangents):
    q, b, k, v, g, S, last = saved
    do, dlast = cotangents
    solve, recur = partial(forward, interpret), partial(plain.forward, interpret)
    flip = lambda x: None if x is None else x[:, ::-1]
    # Backwards, what a read of S_t left has decayed by the next token's decay, and what a read of S_{t−1}
    # left by its own.
    own = flip(g)
    next_ = None if g is None else flip(jnp.concatenate([g[:, 1:], jnp.zeros_like(g[:, :1])], axis=1))
    w, _ = solve([b], k, v, g, S)
    r, left = recur(flip(k), flip(q), flip(do), next_, dlast)
    dw_, left_by_b = solve([flip(k)], flip(b), r, own, jnp.zeros_like(S))
    dw = flip(dw_)
    dq, _ = recur(do, w, k, g, S.swapaxes(1, 2))
    # A recurrence reads after its own token: what is read before it, the neighbour reads.
    read, _ = recur(jnp.pad(dw[:, 1:], ((0, 0), (0, 1), (0, 0))), w, k, g, S.swapaxes(1, 2))
    db_0 = jnp.einsum("lhm,lm->lh", S, dw[:, 0].astype(S.dtype), precision=lax.Precision.HIGHEST)
    db = _moved_on(read, db_0)
    later, _ = recur(flip(w), flip(do), flip(q), next_, dlast.swapaxes(1, 2))
    read, _ = recur(_moved_back(flip(w)), dw_, flip(b), own, jnp.zeros_like(S).swapaxes(1, 2))
    dk = flip(later + _moved_on(read, jnp.zeros_like(read[:, 0])))
    if g is None:
        return dq, db, dk, dw, None, left + left_by_b
    dot = lambda x, y: jnp.sum(x.astype(jnp.float32) * y.astype(jnp.float32), axis=-1)
    dG = dot(q, dq) - dot(k, dk) + jnp.pad(dot(b, db)[:, 1:], ((0, 0), (0, 1)))
    dG = dG.at[:, -1].add(jnp.sum(dlast * last, axis=(1, 2)))
    dg = jnp.where(g < BORDER, 0, lax.cumsum(dG, axis=1, reverse=True))
    first = jnp.where(g[:, 0] < BORDER, 0, jnp.exp(g[:, 0]))
    return dq, db, dk, dw, dg, first[:, None, None] * left + left_by_b


delta.defvjp(_remembered, _backward)


def _moved_on(x: jax.Array, first: jax.Array) -> jax.Array:
    """x (L, T, …) a token later, without its last and with `first` (L, …)."""
    return jnp.concatenate([first[:, None].astype(x.dtype), x[:, :-1]], axis=1)


def _moved_back(x: jax.Array) -> jax.Array:
    """x (L, T, …) a token earlier, without its first and with zeros for the last."""
    return jnp.concatenate([x[:, 1:], jnp.zeros_like(x[:, :1])], axis=1)


def forward(interpret: bool, readers: list, k, v, g, S) -> tuple[jax.Array, jax.Array]:
    """The kernel itself, over all rows and chunks. From `readers` [q, b] it gives o and the last state, from
    [b] alone w and the last state."""
    cost = partial(products, reads=len(readers) > 1, dtype=k.dtype)
    return plain.over_chunks(NAME, one_row, cost, interpret, readers, k, v, g, S, most=ROWS, before=True)


def one_row(row: int, readers, kT, v, down, along, out, S) -> Iterator[None]:
    """The chunk of one row, in phases."""
    *q, b = readers
    dtype, blocks, M = b.dtype, b.shape[1] // BLOCK, v.shape[-1]
    dot, tokens = plain.product_of(dtype), plain.tokens_of(blocks)
    t, s = (lax.broadcasted_iota(jnp.int32, (BLOCK, BLOCK), axis) for axis in (0, 1))

    def along_lanes(kind: int, i: int):
        return along[row, kind * blocks + i : kind * blocks + i + 1, :]

    def decayed(x, at: int, i: int, sees):
        """x of block i, where readers that stand at `at` of `down` see keys."""
        if down is None:
            return jnp.where(sees, x, 0)
        return x * jnp.exp2(jnp.where(sees, spread(down, row, at) - along_lanes(0, i), -jnp.inf))

    def carried(x, at: int, state):
        """What x, whose readers stand at `at` of `down`, reads of the state before its block."""
        read = dot(x, state.astype(dtype))
        return read if down is None else read * over_values(jnp.exp2(spread(down, row, at)), M)

    N = [decayed(dot(b[row, at], kT[row, :, at]), blocks + i, i, s < t) for i, at in enumerate(tokens)]
    yield
    X = []
    for phase in zip(*(inverse(n, t ^ s, dtype) for n in N), strict=True):
        X = [x.astype(dtype) for x in phase if x is not None]
        yield
    if q:
        A = [dot(q[0][row, at], kT[row, :, at]) for at in tokens]
        A = [decayed(A[i], i, i, s <= t).astype(dtype) for i in range(blocks)]
        yield
    state = S[row]
    for i, at in enumerate(tokens):
        rest = v[row, at].astype(jnp.float32) + carried(b[row, at], blocks + i, state)
        w = dot(X[i], rest.astype(dtype)).astype(dtype)
        if q:
            out[row, at] = (dot(A[i], w) + carried(q[0][row, at], i, state)).astype(dtype)
        else:
            out[row, at] = w
        keys = kT[row, :, at]
        if down is not None:
            keys = (keys.astype(jnp.float32) * along_lanes(1, i)).astype(dtype)
            state = state * over_values(along_lanes(2, i), M)
        state = state + dot(keys, w)
        yield
    S[row] = state


def inverse(N: jax.Array, apart: jax.Array, dtype) -> Iterator[jax.Array | None]:
    """(I − N)⁻¹ of a strictly lower triangular N (128, 128); None after each phase before that.

    Of a matrix of diagonal blocks of h tokens it keeps h rows, the blocks beside one another: the left
    factor of a product is then h rows and not 128. `apart` has t XOR s: below h in diagonal blocks of h, from
    h on and below 2 h between the two that will be joined.
    """
    product = partial(exact_product, passes=6 if dtype == jnp.float32 else 3)

    def whole(rows, h):
        """(128, 128) of its diagonal blocks (h, 128)."""
        return jnp.where(apart < h, jnp.concatenate([rows] * (BLOCK // h), axis=0), 0)

    lane = lax.broadcasted_iota(jnp.int32, (1, BLOCK), 1)
    diagonal = jnp.where(apart < SUBLANES, N, 0)
    rows = sum(diagonal[i : i + SUBLANES] for i in range(0, BLOCK, SUBLANES))
    within = apart[:SUBLANES] & (SUBLANES - 1)
    X = jnp.where(within == 0, 1.0, jnp.where(within == 1, rows, 0))
    for h in (2, 4):  # of eight rows as well, in which blocks of h are diagonal
        lower = jnp.where((within >= h) & (within < 2 * h), rows, 0)
        X = X + product(product(X, whole(lower, SUBLANES)), whole(X, SUBLANES))
        yield None
    h = SUBLANES
    while h < BLOCK:
        lower = jnp.where((apart >= h) & (apart < 2 * h), N, 0)
        lower = product(product(X, lower), whole(X, h))
        first = lane & h == 0
        X = jnp.concatenate([jnp.where(first, X, 0), jnp.where(first, lower, X)], axis=0)
        h *= 2
        yield None if h < BLOCK else X


def exact_product(x: jax.Array, y: jax.Array, passes: int) -> jax.Array:
    """x y in float32, from 6 products in bfloat16, or to 2^−16 from 3."""
    if passes == 6:
        return jnp.dot(x, y, precision=lax.Precision.HIGHEST)
    (x, x_rest), (y, y_rest) = map(_halves, (x, y))
    dot = partial(jnp.dot, preferred_element_type=jnp.float32)
    both = dot(jnp.concatenate([x, x_rest], axis=0), y)  # y is loaded once for both
    return both[: len(x)] + (dot(x, y_rest) + both[len(x) :])


def _halves(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """x in bfloat16 and what is left of it."""
    rounded = x.astype(jnp.bfloat16)
    return rounded, (x - rounded.astype(jnp.float32)).astype(jnp.bfloat16)


def products(H: int, M: int, blocks: int, *, reads: bool = True, dtype=jnp.bfloat16) -> int:
    """Multiply-adds of a chunk of so many blocks of one row, where those of the inverse count once for each
    of its passes."""
    rows = 4 * SUBLANES + 2 * (BLOCK - SUBLANES)
    solved = BLOCK * BLOCK * (rows * (6 if dtype == jnp.float32 else 3))
    written = BLOCK * BLOCK * (H + M) + 2 * BLOCK * H * M
    read = BLOCK * BLOCK * (H + M) + BLOCK * H * M
    return blocks * (solved + written + reads * read)
