"""How much of the past is left: products of decays D_t between two micro-steps of one chunk.

Decays are given as logarithms (0: keep, −inf: forget), one of three kinds: the identity, one decay per
head, one decay per key channel. Between the halves of a block a product has two factors that meet in the
middle,

    D_{t−1} … D_{s+1} = (D_{t−1} … D_middle) (D_{middle−1} … D_{s+1})    (s < middle ≤ t),

so all pairs (t, s) follow from blocks of 2, 4, 8, … steps, each a matrix product. Nothing is divided and
no logarithms are subtracted: a decay of exactly 0 stays exact, its gradient finite, in the middle of a
chunk, and nothing overflows where decays are at most 1.

Shapes: L rows (batch · heads), n micro-steps of the chunk, r of them read (n divisible by r), H key
channels.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

Reads = Literal["before", "after"]


class Decayed(NamedTuple):
    """What readers x and keys k of one chunk have to do with each other, and with what is outside of it.

    Attributes:
      inner: of each reader and each key, x_tᵀ (D_t … D_{s+1}) k_s for every s that t sees, else 0: (L, r, n).
      carried: of each reader, x_tᵀ (D_t … D_1), what it reads of the state before the chunk: (L, r, H).
      remaining: of each key, (D_n … D_{s+1}) k_s, what is left of it after the chunk: (L, n, H).
      whole: D_n … D_1, what is left of the state before the chunk, in a shape that multiplies (L, H, M).
    """

    inner: list[list[jax.Array]]
    carried: list[jax.Array]
    remaining: list[jax.Array]
    whole: jax.Array


def decayed(
    log_decay: jax.Array | None, readers: list[tuple[jax.Array, Reads]], keys: list[jax.Array]
) -> Decayed:
    """One chunk.

    Args:
      log_decay: None, (L, n) or (L, n, H).
      readers: x (L, r, H), and whether it reads the state "before" or "after" the micro-steps of its token.
      keys: (L, n, H) each.
    """
    n = keys[0].shape[1]
    if log_decay is None:
        sees = lambda x, reads: np.tri(n, k=-1)[None, _own(n, x, reads)] + _itself(n, x, reads) > 0
        return Decayed(
            [[jnp.where(sees(x, reads), _products(x, k), 0) for k in keys] for x, reads in readers],
            [x for x, _ in readers],
            keys,
            jnp.ones((), keys[0].dtype),
        )
    D = jnp.exp(log_decay)
    return (_per_head if D.ndim == 2 else _per_channel)(D, readers, keys)


def _per_head(D, readers, keys) -> Decayed:
    one = jnp.ones_like(D)[..., None]
    outer = lambda x, k: x * k.swapaxes(-1, -2)
    [[weight]], [before], [after], whole = _sweep(D[..., None], [one], [one], outer)

    def read(y, x, reads):
        """The rows of y (L, n, …) for the reader x."""
        own = _own(D.shape[1], x, reads)
        return y[:, own] * D[:, own, None] if reads == "after" else y[:, own]

    def inner(k, x, reads):
        return _products(x, k) * (read(weight, x, reads) + _itself(D.shape[1], x, reads))

    return Decayed(
        [[inner(k, *reader) for k in keys] for reader in readers],
        [x * read(before, x, reads) for x, reads in readers],
        [k * after for k in keys],
        whole[..., None],
    )


def _per_channel(D, readers, keys) -> Decayed:
    n = D.shape[1]

    def placed(x, reads):
        """x at the micro-steps at which it reads, as if before them: (L, n, H)."""
        own = _own(n, x, reads)
        x = x * D[:, own] if reads == "after" else x
        return x if x.shape == D.shape else jnp.zeros_like(D).at[:, own].set(x)

    pairs, carried, remaining, whole = _sweep(D, [placed(*reader) for reader in readers], keys, _products)

    def inner(A, k, x, reads):
        own = _own(n, x, reads)
        if reads == "before":
            return A[:, own]
        return A[:, own] + jnp.sum(x * k[:, own], axis=-1, keepdims=True) * _itself(n, x, reads)

    return Decayed(
        [
            [inner(A, k, *reader) for A, k in zip(row, keys, strict=True)]
            for row, reader in zip(pairs, readers, strict=True)
        ],
        [x[:, _own(n, *reader)] for x, reader in zip(carried, readers, strict=True)],
        remaining,
        whole[..., None],
    )


def _sweep(D, xs, ks, products):
    """From D, every x and every k (L, n, H), readers standing before their step:
    x_tᵀ D_{t−1} … D_{s+1} k_s for s < t, else 0; x_tᵀ D_{t−1} … D_1; D_n … D_{s+1} k_s; D_n … D_1.

    Blocks (L, n / size, size, …) are joined in pairs: x of the second half reads on to the start of the
    first, k of the first half decays on to the end of the second.
    """
    n = D.shape[1]
    more = ((0, 0), (0, _power_of_two(n) - n), (0, 0))
    D = jnp.pad(D, more, constant_values=1)
    xs, ks = jax.tree.map(lambda y: jnp.pad(y, more)[:, :, None], (xs, ks))
    pairs = [[jnp.zeros((*D.shape[:2], 1, 1), D.dtype) for _ in ks] for _ in xs]
    while D.shape[1] > 1:
        D1, D2 = halves(D)
        D = D1 * D2
        xs, ks, pairs = jax.tree.map(halves, (xs, ks, pairs))
        pairs = [
            [join(A1, products(x2, k1), A2) for (A1, A2), (k1, _) in zip(row, ks, strict=True)]
            for row, (_, x2) in zip(pairs, xs, strict=True)
        ]
        xs = [jnp.concatenate([x1, x2 * D1[:, :, None]], axis=2) for x1, x2 in xs]
        ks = [jnp.concatenate([k1 * D2[:, :, None], k2], axis=2) for k1, k2 in ks]
    pairs, xs, ks = jax.tree.map(lambda y: y[:, 0, :n], (pairs, xs, ks))
    return [[A[..., :n] for A in row] for row in pairs], xs, ks, D[:, 0]


def halves(blocks):
    """The first and the second of every two blocks, of (L, blocks, …)."""
    blocks = blocks.reshape(blocks.shape[0], -1, 2, *blocks.shape[2:])
    return blocks[:, :, 0], blocks[:, :, 1]


def join(first, lower, second):
    """Two lower triangular matrices (…, m, m) on the diagonal of one of twice their size, and what lies
    below the first."""
    top = jnp.concatenate([first, jnp.zeros_like(first)], axis=-1)
    return jnp.concatenate([top, jnp.concatenate([lower, second], axis=-1)], axis=-2)


def _products(x, k):
    """x_tᵀ k_s of (…, t, H) and (…, s, H)."""
    return jnp.einsum("...th,...sh->...ts", x, k)


def _own(n: int, x: jax.Array, reads: Reads) -> slice:
    """The r micro-steps, among n, at which the tokens of x (L, r, H) read: their last, or their first."""
    stride = n // x.shape[1]
    return slice(stride - 1 if reads == "after" else 0, None, stride)


def _itself(n: int, x: jax.Array, reads: Reads) -> np.ndarray:
    """1 where a reader of x sees its own micro-step, else 0: (1, r, n)."""
    return (np.eye(n, dtype=x.dtype) * (reads == "after"))[None, _own(n, x, reads)]


def _power_of_two(n: int) -> int:
    """The least at or above n."""
    return 1 << (n - 1).bit_length()


def inner_flops(log_decay: jax.Array | None, rows: int, n: int, r: int, size: int) -> int:
    """Matrix-product FLOPs of one reader and one key, for log_decay (B, T, N, …) and L = `rows`."""
    if log_decay is None or log_decay.ndim == 3:
        return 2 * rows * r * n * size
    n = _power_of_two(n)
    return rows * n * (n - 1) * size
