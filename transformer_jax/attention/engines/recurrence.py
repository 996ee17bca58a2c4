"""The linear recurrence and its executions: token by token, and in parallel within chunks, by XLA or by a
kernel (`recurrence_kernel`).

    S_t = D_t S_{t−1} + k_t v_tᵀ + a_t (b_tᵀ S_{t−1}),    o_t = S_tᵀ q_t

S is (H, M), key channels by value channels; D_t is the identity, a decay per head or a decay per key
channel. The correction a_t (b_tᵀ S_{t−1}) replaces what is stored under b_t (the delta rule has a multiple
of k for a, and b = k). Everything else that a mechanism may ask for (signs, a normalizer, a stabilizer,
segments, padding) is brought to this form in `forms.py`.

Within a chunk whose state was S_0, u_t = S_{t−1}ᵀ b_t solves a unit triangular system. With
(X|Y)_ts = x_tᵀ D_{t−1} … D_{s+1} y_s for s < t, X̂_t = D_1 … D_{t−1} x_t and K̂_s = D_n … D_{s+1} k_s,

    (I − (B|A)) U = B̂ S_0 + (B|K) V,    S_n = D_n … D_1 S_0 + K̂ᵀ V + Âᵀ U,

and O follows from q as U did from b, with D_t and s = t besides. Where a_t = c_t k_t K carries
both: W = V + diag(c) U solves (I − diag(c) (B|K)) W = V + diag(c) B̂ S_0. (Without the decay this is the WY
form of arXiv:2406.06484, section 3.2.)

The map S_0 → S is affine and acts on each value channel alone: with v padded by H zero channels and
S_0 = [0, I] the final state is [state of the shard from nothing, transition product of the shard], which is
what a shard passes on (`summary`). Without corrections that product is diagonal, and known from the decays.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from transformer_jax.attention.engines import recurrence_kernel
from transformer_jax.attention.engines.chunks import cut, in_chunks
from transformer_jax.attention.engines.decay import Decayed, Reads, decayed, inner_flops, join


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class Steps:
    """The streams of a recurrence of R micro-steps per token; a token reads once.

    Attributes:
      q: (B, T, N, H).
      k: (B, T·R, N, H). v: (B, T·R, N, M).
      log_decay: log D, None for the identity, (B, T·R, N) or (B, T·R, N, H); −inf forgets.
      a: (B, T·R, N, H), or (B, T·R, N) for a multiple of k, and b: (B, T·R, N, H); None where nothing is
        corrected.
      reads: whether o_t reads the state "after" the token's micro-steps or "before" them.
    """

    q: jax.Array
    k: jax.Array
    v: jax.Array
    log_decay: jax.Array | None = None
    a: jax.Array | None = None
    b: jax.Array | None = None
    reads: Reads = field(default="after", metadata={"static": True})

    @property
    def micro(self) -> int:
        return self.k.shape[1] // self.q.shape[1]

    @property
    def tied(self) -> bool:
        """Whether a is a multiple of k."""
        return self.a is not None and self.a.ndim < self.k.ndim

    @property
    def dtype(self):
        """Of state and arithmetic: float32 at least."""
        return jnp.promote_types(jnp.float32, self.q.dtype)

    def accurate(self) -> Steps:
        return jax.tree.map(lambda x: x.astype(self.dtype), self)

    def empty(self) -> jax.Array:
        """The state before the first token: (B, N, H, M) zeros."""
        batch, _, heads, size = self.k.shape
        return jnp.zeros((batch, heads, size, self.v.shape[-1]), self.dtype)


def run(steps: Steps, S: jax.Array | None = None, chunk: int | None = None) -> tuple[jax.Array, jax.Array]:
    """o (B, T, N, M) and the state (B, N, H, M) after the last token; `S` is the state before the first."""
    S = steps.empty() if S is None else S.astype(steps.dtype)
    if steps.q.shape[1] == 1:
        return dense(steps, S)
    found = recurrence_kernel.run(steps, S)
    return found or chunked(steps, S, tokens_per_chunk(steps, chunk))


def tokens_per_chunk(steps: Steps, chunk: int | None) -> int:
    """`chunk`, or 64 micro-steps: near the head size, where work inside and between chunks is equal.

    Half of it where channels decay and are corrected, whose work inside is more: 25% less time on a CPU.
    """
    if chunk is not None:
        return chunk
    by_channel = steps.log_decay is not None and steps.log_decay.ndim == 4
    return max(1, (32 if by_channel and steps.b is not None else 64) // steps.micro)


def flops(steps: Steps, chunk: int | None = None) -> int:
    """Matrix-product FLOPs of `run`; only shapes are read."""
    batch, length, heads, H = steps.q.shape
    M, rows = steps.v.shape[-1], batch * heads
    if length == 1:
        return 2 * rows * H * M * (1 + (0 if steps.b is None else steps.micro))
    chunks, r = cut(length, tokens_per_chunk(steps, chunk))
    n = r * steps.micro
    keys = 1 if steps.b is None or steps.tied else 2
    total = 2 * rows * r * H * M
    total += keys * (inner_flops(steps.log_decay, rows, n, r, H) + 2 * rows * (r * n * M + n * H * M))
    if steps.b is not None:
        total += keys * (inner_flops(steps.log_decay, rows, n, n, H) + 2 * rows * n * n * M)
        total += 2 * rows * n * H * M
        halves, size = [BLOCK], _padded(n)
        while 2 * halves[-1] < size:
            halves.append(2 * halves[-1])
        total += sum(2 * rows * half**2 * size for half in halves if half < size)
    return total * chunks


def dense(steps: Steps, S: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The recurrence as it is written, one token after another."""
    length, micro = steps.q.shape[1], steps.micro

    def by_token(x):
        """(B, T·m, N, …) → (T, m, B, N, …)."""
        return jnp.moveaxis(x.reshape(x.shape[0], length, -1, *x.shape[2:]), 0, 2)

    def token(S, x: Steps):
        x = x.accurate()
        before = S
        for i in range(micro):
            found = None if x.b is None else jnp.einsum("bnhm,bnh->bnm", S, x.b[i])
            if x.log_decay is not None:
                D = jnp.exp(x.log_decay[i])
                S = S * (D[..., None, None] if D.ndim == 2 else D[..., None])
            S = S + x.k[i][..., :, None] * x.v[i][..., None, :]
            if found is not None:
                a = x.a[i][..., None] * x.k[i] if x.tied else x.a[i]
                S = S + a[..., :, None] * found[..., None, :]
        return S, jnp.einsum("bnhm,bnh->bnm", before if x.reads == "before" else S, x.q[0])

    S, o = jax.lax.scan(token, S, jax.tree.map(by_token, steps))
    return jnp.moveaxis(o, 0, 1), S


def chunked(steps: Steps, S: jax.Array, chunk: int) -> tuple[jax.Array, jax.Array]:
    """The same, `chunk` tokens at once."""
    batch, length, heads = steps.q.shape[:3]
    o, S = _by_chunks(one_chunk, steps, S, chunk)
    return jnp.moveaxis(o.reshape(batch, heads, length, -1), 1, 2), S


def _by_chunks(f: Callable, steps: Steps, S: jax.Array, chunk: int) -> tuple[Any, jax.Array]:
    """What f(steps, S) → (S, o) puts out, (B·N, T, …) or None, and the last S."""
    batch, length, heads = steps.q.shape[:3]

    def rows(x):
        """(B, T·m, N, …) → (B·N, T·m, …)."""
        return jnp.moveaxis(x, 2, 1).reshape(batch * heads, x.shape[1], *x.shape[3:])

    def body(S, x: Steps):  # steps that fill a chunk have k = 0, a = 0, D = 1
        return f(x.accurate(), S)

    state = S.reshape(batch * heads, *S.shape[2:])
    o, state = in_chunks(body, jax.tree.map(rows, steps), state, length=length, chunk=chunk)
    return o, state.reshape(S.shape)


def one_chunk(x: Steps, S: jax.Array) -> tuple[jax.Array, jax.Array]:
    """One chunk of L = batch · heads rows, streams (L, n, …) and state S (L, H, M): (state, o)."""
    D, values = _written(x, S, [(x.q, x.reads)])
    o = D.carried[0] @ S + sum(A @ w for A, w in zip(D.inner[0], values, strict=True))
    return _moved(D, values, S), o


def _unread_chunk(x: Steps, S: jax.Array) -> tuple[jax.Array, None]:
    return _moved(*_written(x, S, []), S), None


def _written(x: Steps, S: jax.Array, readers: list) -> tuple[Decayed, list[jax.Array]]:
    """The decays between keys, `readers` and b, and the values (L, n, M) of each kind of keys."""
    keys, values = [x.k], [x.v]
    if x.b is not None:
        readers = [*readers, (x.b, "before")]
        keys += [] if x.tied else [x.a]
    D = decayed(x.log_decay, readers, keys)
    if x.b is not None:
        before = D.carried[-1] @ S
        if x.tied:
            a, [A] = x.a[..., None], D.inner[-1]
            values = [unit_triangular_inverse(a * A) @ (x.v + a * before)]
        else:
            K, A = D.inner[-1]
            values.append(unit_triangular_inverse(A) @ (before + K @ x.v))
    return D, values


def _moved(D: Decayed, values: list[jax.Array], S: jax.Array) -> jax.Array:
    written = (jnp.einsum("lsh,lsm->lhm", k, w) for k, w in zip(D.remaining, values, strict=True))
    return D.whole * S + sum(written)


Summary = tuple[jax.Array, jax.Array]
"""A and S of the map S_0 → A S_0 + S: A is (B, N, H, H), or its diagonal (B, N, H or 1, 1)."""


def summary(steps: Steps, chunk: int | None = None) -> Summary:
    """The map from the state before all of the steps to the one after them."""
    chunk, H = tokens_per_chunk(steps, chunk), steps.k.shape[-1]
    if steps.b is None:
        S = _last(steps, steps.empty(), chunk)
        if steps.log_decay is None:
            return jnp.ones((*S.shape[:2], 1, 1), S.dtype), S
        A = jnp.exp(jnp.sum(steps.log_decay.astype(S.dtype), axis=1))
        return A.reshape(*S.shape[:2], -1, 1), S
    start = jnp.broadcast_to(jnp.eye(H, dtype=steps.dtype), (*steps.empty().shape[:2], H, H))
    both = jnp.concatenate([steps.empty(), start], axis=-1)
    v = jnp.concatenate([steps.v, jnp.zeros_like(steps.k)], axis=-1)
    both = _last(replace(steps, v=v), both, chunk)
    return both[..., -H:], both[..., :-H]


def _last(steps: Steps, S: jax.Array, chunk: int) -> jax.Array:
    """The state after all of the steps."""
    if found := recurrence_kernel.run(steps, S):
        return found[1]
    return _by_chunks(_unread_chunk, steps, S, chunk)[1]


def composed(first: Summary, second: Summary) -> Summary:
    (A, S), (A_2, S_2) = first, second
    after = (lambda x: A_2 @ x) if A_2.shape[-1] > 1 else (lambda x: A_2 * x)
    return after(A), after(S) + S_2


def nothing(like: Summary) -> Summary:
    """The map that leaves every state as it is."""
    A, S = like
    one = jnp.eye(A.shape[-1], dtype=A.dtype) if A.shape[-1] > 1 else jnp.ones((1, 1), A.dtype)
    return jnp.broadcast_to(one, A.shape), jnp.zeros_like(S)


BLOCK = 8


@jax.custom_jvp
def unit_triangular_inverse(A: jax.Array) -> jax.Array:
    """(I − A)⁻¹ for strictly lower triangular A (L, n, n).

    Blocks of 8 by substitution, then joined in pairs. The product (I + A)(I + A²)(I + A⁴)… of the
    nilpotent A is not used: repeated keys make its powers grow to 10¹⁷ where the inverse is ±1.
    """
    n = A.shape[-1]
    size = _padded(n)
    A = jnp.pad(A, ((0, 0), (0, size - n), (0, size - n)))
    X = _substitute(_diagonal_blocks(A, BLOCK))
    while X.shape[-1] < size:
        half = X.shape[-1]
        lower = _diagonal_blocks(A, 2 * half)[:, :, half:, :half]
        first, second = X[0::2], X[1::2]
        X = join(first, second @ (lower @ first), second)
    return X[0, :, :n, :n]


@unit_triangular_inverse.defjvp
def _unit_triangular_inverse_jvp(primals, tangents):
    X = unit_triangular_inverse(*primals)
    return X, X @ jnp.tril(tangents[0], -1) @ X


def _padded(n: int) -> int:
    """The least size at or above n that blocks fill when they are joined in pairs."""
    return BLOCK * 2 ** max(0, int(np.ceil(np.log2(n / BLOCK))))


def _diagonal_blocks(A: jax.Array, size: int) -> jax.Array:
    """(L, n, n) → (n / size, L, size, size)."""
    starts = range(0, A.shape[-1], size)
    return jnp.stack([A[:, i : i + size, i : i + size] for i in starts])


def _substitute(A: jax.Array) -> jax.Array:
    """(I − A)⁻¹ of blocks (…, m, m), row after row."""
    m = A.shape[-1]
    unit = jnp.broadcast_to(np.eye(m, dtype=A.dtype), A.shape)
    rows = [unit[..., 0, :]]
    for i in range(1, m):
        above = jnp.stack(rows, axis=-2)
        rows.append(unit[..., i, :] + jnp.sum(A[..., i, :i, None] * above, axis=-2))
    return jnp.stack(rows, axis=-2)
