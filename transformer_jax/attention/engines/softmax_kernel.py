"""Softmax over a static pattern on a kernel of the device, where one can honour all of it.

The kernels give no gradient of the lse: results that are to be merged are the engine's, but for those over
the keys of all shards, whose backward pass reads the lse and sends nothing to it. What a kernel cannot honour
it refuses, and then the engine's own execution runs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from transformer_jax.attention.engines import softmax_sharded
from transformer_jax.attention.engines.softmax import Inputs
from transformer_jax.attention.engines.softmax_plan import Plan
from transformer_jax.kernels import cudnn, splash
from transformer_jax.kernels.choice import Kernel, choose
from transformer_jax.parallel.mesh import current, cuts_sequence
from transformer_jax.parallel.sequence import Shards


def attend(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    segments: softmax_sharded.Segments,
    plan: Plan,
    *,
    rule: Callable | None,
    by_distance: bool,
    scale: float,
    soft_cap: float | None,
) -> jax.Array | None:
    """o (B, T, N, M), or None where the engine's own execution is to run.

    Args:
      q, k, v: (B, T, N, H), (B, S, K, H), (B, S, K, M).
      segments: as `softmax_sharded.Segments`.
      rule: (i, j) → bool, which of the keys that `plan` lists a query sees; None: all of them. by_distance:
        whether it depends on i − j alone.
      scale, soft_cap: what is done to scores.
    """
    cut = cuts_sequence()
    if why := no_shards(q, k, v, plan, rule, by_distance) if cut else not_static(plan):
        refuse(why)
        return None
    causal = softmax_sharded.after_none(plan)
    limits = {"capped": soft_cap is not None, "segmented": segments is not None}
    on_gpu = "the sequence is cut over devices" if cut else cudnn.refusal(q, k, v, plan.reach, **limits)
    kernels = (
        Kernel(splash.NAME, "tpu", splash.refusal(q, k, v)),
        Kernel(cudnn.NAME, "gpu", on_gpu, interpretable=False),
    )
    chosen = choose(kernels)
    if chosen is None:
        return None
    name, interpret = chosen
    if name == cudnn.NAME:
        return on_mesh(lambda q, k, v, _: cudnn.attention(q, k, v, scale=scale, causal=causal), q, k, v, ())
    if cut:
        query, key = softmax_sharded.segment_streams(segments)
        # The lse has no gradient here, so it goes no further.
        computation = OnSplash(scale, soft_cap, interpret)
        o, _ = softmax_sharded.attend(q, k, v, plan, computation, query=query, key=key)
        return o.astype(q.dtype)
    mask = tiles_of(plan, rule, by_distance)
    kernel = splash.Splash(mask=mask, scale=scale, soft_cap=soft_cap, interpret=interpret)
    return on_mesh(lambda q, k, v, known: kernel.attention(q, k, v, *known), q, k, v, segments or ())


def not_static(plan: Plan) -> str:
    return "" if plan.static else "its blocks follow the content, or differ from head to head"


def no_shards(q, k, v, plan: Plan, rule: Callable | None, by_distance: bool) -> str:
    """Why no kernel can have its keys from other devices; empty where one can."""
    why = softmax_sharded.hidden(q, k, v, plan)
    if not why and rule is not None and not (by_distance and is_band(rule, plan)):
        why = "what a query sees is not all within its reach"
    return f"the sequence is cut over devices, and {why}" if why else ""


def is_band(rule: Callable, plan: Plan) -> bool:
    """Does a query see every key within the reach of its plan, and no other?"""
    distance = np.arange(1 - plan.keys, plan.queries)
    seen = splash.known(rule, distance, np.zeros_like(distance))
    return np.array_equal(np.broadcast_to(seen, distance.shape), reached(plan, distance))


def reached(plan: Plan, distance: np.ndarray) -> np.ndarray:
    """Which keys, at these distances in front of a query, it reaches."""
    before, after = plan.reach or (None, None)
    past = distance <= before if before is not None else np.ones_like(distance, bool)
    return past & (distance >= -after) if after is not None else past


@dataclass(frozen=True)
class OnSplash:
    """`softmax.Computation` of bands on the splash kernel: of the keys that come to a device's queries.

    The kernel rounds the part of each shard's keys to the dtype of q; their sum is in float32.
    """

    scale: float
    soft_cap: float | None
    interpret: bool

    def forward(self, plan, x):
        o, lse = self.kernel(plan).forward(x.q, x.k, x.v, *segments_of(x))
        return o.astype(jnp.float32), lse

    def backward(self, plan, x, o, lse, do, dlse):
        """But for dlse, which is zero where o alone is used."""
        found = self.kernel(plan).backward(x.q, x.k, x.v, o, lse, do, *segments_of(x))
        dq, dk, dv = (d.astype(jnp.float32) for d in found)
        return Inputs(dq, dk, dv, {}, {}, {}, {})

    def kernel(self, plan: Plan) -> splash.Splash:
        return splash.Splash(
            mask=band_of(plan), scale=self.scale, soft_cap=self.soft_cap, interpret=self.interpret
        )


def segments_of(x: Inputs) -> tuple[jax.Array | None, jax.Array | None]:
    """Of queries and of keys (B, T), −1 for keys that are not there."""
    query, key, there = x.query.get("segment"), x.key.get("segment"), x.key.get("there")
    if there is None:
        return query, key
    query, key = (
        jnp.zeros(y.shape[:2], jnp.int32) if known is None else known
        for y, known in ((x.q, query), (x.k, key))
    )
    return query, jnp.where(jnp.broadcast_to(there, key.shape) > 0, key, -1)


def refuse(why: str) -> None:
    """No kernel of any device can do it."""
    choose((Kernel(splash.NAME, "tpu", why), Kernel(cudnn.NAME, "gpu", why, interpretable=False)))


def on_mesh(f: Callable, q: jax.Array, k: jax.Array, v: jax.Array, segments: tuple) -> jax.Array:
    """f of each device's rows and heads: the compiler cannot cut a kernel by itself."""
    mesh = current()
    if mesh is None or mesh.size == 1:
        return f(q, k, v, segments)
    shards = Shards.of(len(q), q.shape[2], k.shape[2])
    inputs = ((x, shards.streams(x)) for x in (q, k, v, segments))
    return shards.run(f, *inputs, out=shards.streams(q))


def band_of(plan: Plan) -> splash.TileMask:
    """What a plan reaches, as a kernel reads it."""
    if plan.reach == (None, None):
        return splash.everything(plan.queries, plan.keys)
    rule = lambda i, j: reached(plan, i + plan.place - j)
    return splash.by_distance(rule, plan.queries, plan.keys, splash.tile_size(plan.pairs / plan.queries))


def tiles_of(plan: Plan, rule: Callable | None, by_distance: bool) -> splash.TileMask:
    """The pattern as a kernel reads it."""
    if rule is None and plan.reach is not None:
        return band_of(plan)
    tile = splash.tile_size(plan.pairs / plan.queries)
    if rule is not None and by_distance and plan.reach is not None:
        return splash.by_distance(rule, plan.queries, plan.keys, tile)
    keys = np.stack([plan.listed(row) for row in range(plan.rows)])

    def seen(i, j):
        listed = keys[i // plan.block, j]
        return listed if rule is None else listed & np.asarray(rule(i, j))

    keys_tiles = -(-plan.keys // tile)
    whole = np.pad(keys, ((0, 0), (0, keys_tiles * tile - plan.keys)))
    by_key_tile = np.asarray(whole.reshape(plan.rows, keys_tiles, tile).any(-1))
    rows = np.minimum(np.arange(-(-plan.queries // tile) * tile), plan.queries - 1) // plan.block
    listed = np.asarray(by_key_tile[rows].reshape(-1, tile, keys_tiles).any(1))
    return splash.by_place(seen, plan.queries, plan.keys, listed, tile)
