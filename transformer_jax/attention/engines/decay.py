"""How much of the past is left: products of decays D_t between two micro-steps of one chunk.

Decays are given as logarithms (0: keep, −inf: forget). Three kinds share one interface: the identity,
one decay per head, one decay per key channel. Only ratios between two steps are ever formed, and every
exponent is at most 0 where decays are at most 1, so nothing overflows. A log decay below 2·log ε
forgets whatever the accuracy can hold: such steps are counted apart instead of summed, so that a
decay of exactly 0 stays exact, and its gradient finite, in the middle of a chunk.

Shapes: L rows (batch · heads), n micro-steps of the chunk, r of them read (n divisible by r), H key
channels. "after" reads the state that a token leaves, "before" the state that it finds.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

Reads = Literal["before", "after"]
SUBCHUNK = 16
"""Steps whose per-channel decays are compared pair by pair; between such groups products factor."""


def _places(n: int, r: int, reads: Reads) -> slice:
    """The r micro-steps, among 0 … n, before which the readers stand."""
    stride = n // r
    first = stride if reads == "after" else 0
    return slice(first, first + stride * (r - 1) + 1, stride)


def _numbers(places: slice) -> np.ndarray:
    return np.arange(places.start, places.stop, places.step)


@dataclass(frozen=True)
class Identity:
    """D = I."""

    steps: int

    def inner(self, x, k, reads: Reads):
        """x_tᵀ (D_t … D_{s+1}) k_s for every s that t sees, else 0: (L, r, n)."""
        places = _places(self.steps, x.shape[1], reads)
        seen = np.arange(self.steps) < _numbers(places)[:, None]
        return jnp.where(seen[None], jnp.einsum("lth,lsh->lts", x, k), 0)

    def carry(self, x, reads: Reads):
        """x_tᵀ (D_t … D_1), what x reads of the state before the chunk: (L, r, H)."""
        return x

    def remain(self, k):
        """(D_n … D_{s+1}) k_s, what is left of k_s after the chunk: (L, n, H)."""
        return k

    def whole(self, S):
        """(D_n … D_1) S, what is left of the state before the chunk."""
        return S


@dataclass(frozen=True)
class _Sums:
    """Cumulative log decay before each micro-step and after the last (axis 1: n + 1), forgettings apart."""

    finite: jax.Array
    forgotten: jax.Array

    @classmethod
    def of(cls, log_decay):
        floor = 2 * np.log(float(jnp.finfo(log_decay.dtype).eps))
        forget = log_decay < floor
        pad = ((0, 0), (1, 0)) + ((0, 0),) * (log_decay.ndim - 2)
        return cls(
            jnp.pad(jnp.cumsum(jnp.where(forget, 0, log_decay), axis=1), pad),
            jnp.pad(jnp.cumsum(forget.astype(jnp.int32), axis=1), pad),
        )

    def __getitem__(self, index):
        return _Sums(self.finite[index], self.forgotten[index])

    def since(self, start: _Sums, seen=True):
        """What is left of `start` here, 0 where it was forgotten or is not seen."""
        keep = (self.forgotten == start.forgotten) & seen
        return jnp.exp(jnp.where(keep, self.finite - start.finite, -jnp.inf))


@dataclass(frozen=True)
class PerHead:
    """D_t = exp(log_decay_t) I, log_decay (L, n)."""

    sums: _Sums

    def inner(self, x, k, reads: Reads):
        n = k.shape[1]
        # Both kinds of reader take their weights from the same exponentials: those of s < t.
        places = _places(n, x.shape[1], reads)
        own = slice(places.start - 1, places.stop - 1, places.step) if reads == "after" else places
        seen = np.arange(n) < _numbers(own)[:, None]
        weight = self.sums[:, own, None].since(self.sums[:, None, 1:], seen[None])
        if reads == "after":
            step = self.sums[:, places].since(self.sums[:, own])
            weight = weight * step[..., None] + (np.arange(n) == _numbers(own)[:, None])[None]
        return jnp.einsum("lth,lsh->lts", x, k) * weight

    def carry(self, x, reads: Reads):
        places = _places(self.sums.finite.shape[1] - 1, x.shape[1], reads)
        return x * self.sums[:, places].since(self.sums[:, :1])[..., None]

    def remain(self, k):
        return k * self.sums[:, -1:].since(self.sums[:, 1:])[..., None]

    def whole(self, S):
        return S * self.sums[:, -1, None, None].since(self.sums[:, 0, None, None])


@dataclass(frozen=True)
class PerChannel:
    """D_t = diag(exp(log_decay_t)), log_decay (L, n, H)."""

    sums: _Sums

    def inner(self, x, k, reads: Reads):
        n, r = k.shape[1], x.shape[1]
        stride = n // r
        group = max(1, SUBCHUNK // stride)
        strips = []
        for first in range(0, r, group):
            rows = slice(first, min(first + group, r))
            begin, end = first * stride, rows.stop * stride
            places = _places(end - begin, rows.stop - first, reads)
            seen = np.arange(end - begin) < _numbers(places)[:, None]
            places = slice(begin + places.start, begin + places.stop, stride)
            here, start = self.sums[:, places], self.sums[:, begin : begin + 1]
            # Before the group: two factors, each at most 1, that meet at the group's start.
            far = jnp.einsum(
                "lth,lsh->lts",
                x[:, rows] * here.since(start),
                k[:, :begin] * start.since(self.sums[:, 1 : begin + 1]),
            )
            weight = here[:, :, None].since(self.sums[:, None, begin + 1 : end + 1], seen[None, :, :, None])
            near = jnp.sum(x[:, rows, None] * k[:, None, begin:end] * weight, axis=-1)
            strips.append(jnp.pad(jnp.concatenate([far, near], axis=2), ((0, 0), (0, 0), (0, n - end))))
        return jnp.concatenate(strips, axis=1)

    def carry(self, x, reads: Reads):
        places = _places(self.sums.finite.shape[1] - 1, x.shape[1], reads)
        return x * self.sums[:, places].since(self.sums[:, :1])

    def remain(self, k):
        return k * self.sums[:, -1:].since(self.sums[:, 1:])

    def whole(self, S):
        return S * self.sums[:, -1].since(self.sums[:, 0])[..., None]


def decay(log_decay: jax.Array | None, steps: int) -> Identity | PerHead | PerChannel:
    """The decays of one chunk of n = `steps`, from None, (L, n) or (L, n, H)."""
    if log_decay is None:
        return Identity(steps)
    return (PerHead if log_decay.ndim == 2 else PerChannel)(_Sums.of(log_decay))


def inner_flops(log_decay: jax.Array | None, rows: int, n: int, r: int, size: int) -> int:
    """Matrix-product FLOPs of `inner` for log_decay (B, T, N, …) and L = `rows`; per channel, pairs within a
    group are no matrix product."""
    if log_decay is None or log_decay.ndim == 3:
        return 2 * rows * r * n * size
    stride = n // r
    group = max(1, SUBCHUNK // stride)
    return sum(2 * rows * min(group, r - i) * i * stride * size for i in range(0, r, group))
