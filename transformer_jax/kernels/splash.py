"""Softmax attention over a static pattern on a TPU: JAX's splash attention, forward and backward.

It must equal `transformer_jax.attention.engines.softmax.attend`. Tiles of the pattern that no query sees are
never computed, and no array of T² entries exists.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.pallas.ops.tpu import splash_attention as splash
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel

NAME = "splash"
TILES = (512, 256, 128)
"""Queries, or keys, of a tile: the first that is no longer than all of them, or than what a query sees, else
the last. 128 is the least that the kernel takes."""
DTYPES = ("float32", "bfloat16")


class TileMask(splash.Mask):
    """Which keys a query sees, tile by tile.

    Only tiles that are seen in part have a mask, equal ones the same.

    Attributes:
      tile: (queries, keys) of a tile.
      kinds: (tiles of queries, tiles of keys) int: −1 where all is seen, −2 where nothing, else the number of
        its mask in `parts`.
      parts: bool each, of the shape of a tile.
    """

    EVERY, NONE = -1, -2

    def __init__(self, kinds: np.ndarray, parts: Sequence[np.ndarray], tile: tuple[int, int]):
        self.kinds, self.parts, self.tile = kinds, parts, tile
        seal = hashlib.sha256(f"{kinds.shape} {tile}".encode() + kinds.tobytes())
        for part in parts:
            seal.update(part.tobytes())
        self._digest = seal.digest()

    @property
    def shape(self) -> tuple[int, ...]:
        return self.kinds.shape[0] * self.tile[0], self.kinds.shape[1] * self.tile[1]

    def __getitem__(self, idx) -> np.ndarray:
        row, column = (at.start // size for at, size in zip(idx, self.tile, strict=True))
        kind = self.kinds[row, column]
        # Of a uniform tile only `any` and `all` are asked: one element answers as well as 512².
        return np.full((1, 1), kind == self.EVERY) if kind < 0 else self.parts[kind]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, TileMask) and self._digest == other._digest

    def __hash__(self) -> int:
        return hash(self._digest)


def tile_size(tokens: float) -> int:
    """The tile for so many tokens: those there are, or the keys that a query sees."""
    return next((tile for tile in TILES if tile <= tokens), TILES[-1])


def everything(queries: int, keys: int) -> TileMask:
    """Every query sees every key. A few queries, or a few keys, fill tiles of their own length."""
    tile = tile_size(queries), tile_size(keys)
    return TileMask(np.full((-(-queries // tile[0]), -(-keys // tile[1])), TileMask.EVERY), [], tile)


def by_distance(rule: Callable, queries: int, keys: int, tile: int) -> TileMask:
    """The mask of a rule (i, j) → bool that depends on i − j alone.

    As tiles on one diagonal are equal, the rule is asked once per distance.
    """
    rows, columns = -(-queries // tile), -(-keys // tile)
    distance = np.arange(-columns * tile + 1, rows * tile)
    seen = known(rule, distance, np.zeros_like(distance))
    within = np.arange(tile)[:, None] - np.arange(tile)[None] + columns * tile - 1
    numbered = Numbered()
    diagonal = [numbered(seen[(n - columns + 1) * tile + within]) for n in range(rows + columns - 1)]
    kinds = np.array(diagonal)[np.arange(rows)[:, None] - np.arange(columns)[None] + columns - 1]
    return TileMask(kinds, numbered.parts, (tile, tile))


def by_place(rule: Callable, queries: int, keys: int, listed: np.ndarray, tile: int) -> TileMask:
    """The mask of any static rule (i, j) → bool, asked within the `listed` tiles, (tiles of queries, tiles of
    keys) bool; in no other is anything seen."""
    numbered = Numbered()
    kinds = np.full(listed.shape, TileMask.NONE)
    place = np.arange(tile)
    for row, column in np.argwhere(listed):
        i = np.minimum(row * tile + place, queries - 1)[:, None]
        j = np.minimum(column * tile + place, keys - 1)[None]
        kinds[row, column] = numbered(np.broadcast_to(known(rule, i, j), (tile, tile)))
    return TileMask(kinds, numbered.parts, (tile, tile))


class Numbered:
    """Numbers masks of tiles, equal ones alike."""

    def __init__(self):
        self.parts: list[np.ndarray] = []
        self.numbers: dict[bytes, int] = {}

    def __call__(self, seen: np.ndarray) -> int:
        if seen.all():
            return TileMask.EVERY
        if not seen.any():
            return TileMask.NONE
        number = self.numbers.setdefault(np.packbits(seen).tobytes(), len(self.parts))
        if number == len(self.parts):
            self.parts.append(np.ascontiguousarray(seen))
        return number


def known(rule: Callable, i: np.ndarray, j: np.ndarray) -> np.ndarray:
    """rule(i, j) as numbers, also while a program is traced."""
    with jax.ensure_compile_time_eval():
        return np.asarray(rule(i, j))


def refusal(q, k, v) -> str:
    """Why the kernel cannot take these (B, T, N, H), (B, S, K, H), (B, S, K, M); empty where it can."""
    if not {x.dtype.name for x in (q, k, v)} <= set(DTYPES):
        return f"splash attention computes in {' or '.join(DTYPES)}, not {q.dtype.name}"
    if len({q.dtype, k.dtype, v.dtype}) > 1:
        return "splash attention wants q, k and v of one dtype"
    return ""


@dataclass(frozen=True, kw_only=True)
class Splash:
    """softmax(soft_cap tanh(scale q kᵀ / soft_cap)) v over what the mask and the segments let a query see.

    Of q (B, T, N, H), k (B, S, K, H), query head n reading key head n // (N / K), v (B, S, K, M), and
    segments (B, T), (B, S) ≥ 0, −1 where padded, both or neither. What a query that sees nothing gets is
    arbitrary, and finite.

    Attributes:
      mask: covers T × S.
      soft_cap: None for none.
      interpret: by JAX, on any device.
    """

    mask: TileMask
    scale: float
    soft_cap: float | None = None
    interpret: bool = False

    def attention(self, q, k, v, query_segments=None, key_segments=None) -> jax.Array:
        """o (B, T, N, M) in the dtype of q, with its gradient."""
        inputs, length = self._laid_out(q, k, v, query_segments, key_segments), q.shape[1]
        o: Any = jax.vmap(self._kernel(q.shape[2]))(*inputs)
        return back(o, length)

    def forward(self, q, k, v, query_segments=None, key_segments=None) -> tuple[jax.Array, jax.Array]:
        """o in the dtype of q and lse (B, T, N) in float32, without a gradient: of a part of the keys."""
        inputs, length = self._laid_out(q, k, v, query_segments, key_segments), q.shape[1]
        o, (lse,) = jax.vmap(self._kernel(q.shape[2], save_residuals=True))(*inputs)
        return back(o, length), jnp.moveaxis(lse, 1, 2)[:, :length]

    def backward(
        self, q, k, v, o, lse, do, query_segments=None, key_segments=None
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """The gradients of q, k and v from that of o. That and lse may be of a softmax over more keys than
        these."""
        q_, k_, v_, segments = self._laid_out(q, k, v, query_segments, key_segments)
        kernel = self._kernel(q.shape[2])
        rows, _ = self._missing(q, k)
        o_, do_, lse_ = (heads_first(x, rows) for x in (o, do.astype(q.dtype), lse))

        def one(q, k, v, segments, o, lse, do):
            # What JAX's own differentiation of the kernel calls; there is no public way to hand it the
            # results of a softmax of which these keys are a part.
            saved = q, k, v, segments, None, o, lse, kernel.dq_mask_info, kernel.dkv_mask_info
            found = splash_attention_kernel._splash_attention_bwd(**kernel.kwargs, res=saved, do=do)
            return found[3:6]

        dq, dk, dv = jax.vmap(one)(q_, k_, v_, segments, o_, lse_, do_)
        dq = dq.astype(jnp.float32) * self.scale  # not rounded twice
        return back(dq, q.shape[1]), back(dk, k.shape[1]), back(dv, k.shape[1])

    def _missing(self, q, k) -> tuple[int, int]:
        """Queries and keys that the last tiles lack."""
        rows, columns = self.mask.shape
        return rows - q.shape[1], columns - k.shape[1]

    def _laid_out(self, q, k, v, query_segments, key_segments) -> tuple:
        """q, scaled, k and v as whole tiles (B, heads, tokens, channels), and their segments."""
        rows, columns = self._missing(q, k)
        q = (q.astype(jnp.float32) * self.scale).astype(q.dtype)
        if query_segments is None and columns:
            query_segments, key_segments = (jnp.zeros(x.shape[:2], jnp.int32) for x in (q, k))
        segments = None
        if query_segments is not None:
            segments = splash.SegmentIds(
                filled(query_segments, rows, -1).astype(jnp.int32),
                filled(key_segments, columns, -1).astype(jnp.int32),
            )
        return *(heads_first(x, missing) for x, missing in ((q, rows), (k, columns), (v, columns))), segments

    def _kernel(
        self, heads: int, *, save_residuals: bool = False
    ) -> splash_attention_kernel.SplashAttentionKernel:
        return splash.make_splash_mha(
            splash.MultiHeadMask([self.mask] * heads),
            block_sizes=tiles(*self.mask.tile),
            head_shards=1,
            q_seq_shards=1,
            attn_logits_soft_cap=self.soft_cap,
            save_residuals=save_residuals,
            interpret=self.interpret,
        )


def filled(x: jax.Array, missing: int, value: float = 0) -> jax.Array:
    """(B, T, …) with so many tokens more."""
    more = [(0, 0), (0, missing), *[(0, 0)] * (x.ndim - 2)]
    return jnp.pad(x, more, constant_values=value) if missing else x


def heads_first(x: jax.Array, missing: int) -> jax.Array:
    return jnp.moveaxis(filled(x, missing), 2, 1)


def back(x: jax.Array, length: int) -> jax.Array:
    """The inverse of `heads_first`."""
    return jnp.moveaxis(x, 1, 2)[:, :length]


def tiles(queries: int, keys: int) -> splash.BlockSizes:
    """Of the forward pass and of both backward ones. (The fused backward pass keeps T²/tile numbers.)"""
    return splash.BlockSizes(
        block_q=queries,
        block_kv=keys,
        block_kv_compute=keys,
        block_q_dkv=queries,
        block_kv_dkv=keys,
        block_kv_dkv_compute=keys,
        block_q_dq=queries,
        block_kv_dq=keys,
    )
