"""Softmax over a static pattern on a kernel of the device, where one can honour all of it.

The kernels give o alone, without the lse, and no gradient of it: results that are to be merged are the
engine's. What a kernel cannot honour it refuses, and then the engine's own execution runs.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from transformer_jax.attention.contract import Layout
from transformer_jax.attention.engines.softmax_plan import Plan
from transformer_jax.kernels import cudnn, splash
from transformer_jax.kernels.choice import Kernel, choose
from transformer_jax.parallel.mesh import current, cuts_sequence
from transformer_jax.parallel.sequence import Shards


def attend(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    layout: Layout,
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
      rule: (i, j) → bool, which of the keys that `plan` lists a query sees; None: all of them. by_distance:
        whether it depends on i − j alone.
      scale, soft_cap: what is done to scores.
    """
    for refused, why in (
        (cuts_sequence(), "the sequence is cut over devices, and keys come from other shards"),
        (not plan.static, "its blocks follow the content, or differ from head to head"),
    ):
        if refused:
            refuse(why)
            return None
    causal = plan.reach is not None and plan.reach[1] == 0
    # Padding is on the right: a causal query that is none sees none.
    segmented = layout.segments is not None or (layout.lengths is not None and not causal)
    kernels = (
        Kernel(splash.NAME, "tpu", splash.refusal(q, k, v)),
        Kernel(
            cudnn.NAME,
            "gpu",
            cudnn.refusal(q, k, v, plan.reach, capped=soft_cap is not None, segmented=segmented),
            interpretable=False,
        ),
    )
    chosen = choose(kernels)
    if chosen is None:
        return None
    name, interpret = chosen
    if name == cudnn.NAME:
        return on_mesh(lambda q, k, v, _: cudnn.attention(q, k, v, scale=scale, causal=causal), q, k, v, None)
    mask, segments = tiles_of(plan, rule, by_distance), None
    if segmented:
        segments = jnp.zeros_like(layout.positions) if layout.segments is None else layout.segments
        segments = segments if layout.valid is None else jnp.where(layout.valid, segments, -1)

    def own(q, k, v, segments):
        return splash.attention(
            *(q, k, v, mask),
            scale=scale,
            soft_cap=soft_cap,
            query_segments=segments,
            key_segments=segments,
            interpret=interpret,
        )

    return on_mesh(own, q, k, v, segments)


def refuse(why: str) -> None:
    """No kernel of any device can do it."""
    choose((Kernel(splash.NAME, "tpu", why), Kernel(cudnn.NAME, "gpu", why, interpretable=False)))


def on_mesh(f: Callable, q: jax.Array, k: jax.Array, v: jax.Array, segments: jax.Array | None) -> jax.Array:
    """f of each device's rows and heads: the compiler cannot cut a kernel by itself."""
    mesh = current()
    if mesh is None or mesh.size == 1:
        return f(q, k, v, segments)
    shards = Shards.of(len(q), q.shape[2], k.shape[2])
    inputs = ((x, shards.streams(x)) for x in (q, k, v, segments))
    return shards.run(f, *inputs, out=shards.streams(q))


def tiles_of(plan: Plan, rule: Callable | None, by_distance: bool) -> splash.TileMask:
    """The pattern as a kernel reads it."""
    tile = splash.tile_size(plan.pairs / plan.queries)
    if by_distance and plan.reach is not None:
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
