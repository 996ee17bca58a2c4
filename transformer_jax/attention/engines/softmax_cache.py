"""Decode state of softmax attention: a cache of all keys, or a ring of the last ones.

Both are dictionaries: k and v (B, K, H, slots) with the token last, as the engine reads them, `segment`
(B, slots) with −1 where a slot is empty, `count` (B,) tokens so far, and `last` (B,) the segment of the
latest token. Rows advance by their own lengths and padding never lands.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import jax
import jax.numpy as jnp
from jax import lax

from transformer_jax.attention.contract import Layout, State
from transformer_jax.attention.engines.softmax import Score, Streams, attend, merge
from transformer_jax.attention.engines.softmax_plan import band

PIECE = 256
"""Keys of the cache that are read at a time."""


def empty(
    batch: int, kv_heads: int, head_size: int, slots: int, dtype: str, key_size: int | None = None
) -> State:
    """The state of `batch` sequences before their first token; keys are as long as values, or `key_size`."""
    zeros = lambda size: jnp.zeros((batch, kv_heads, size, slots), jnp.dtype(dtype))
    return {
        "k": zeros(key_size or head_size),
        "v": zeros(head_size),
        "segment": jnp.full((batch, slots), -1, jnp.int32),
        "count": jnp.zeros((batch,), jnp.int32),
        "last": jnp.zeros((batch,), jnp.int32),
    }


def places(state: State, length: int) -> jax.Array:
    """(B, T) how many tokens of its row came before each of T new ones."""
    return state["count"][:, None] + jnp.arange(length)[None]


def segments(layout: Layout, state: State) -> jax.Array:
    """(B, T) the segment of each new token; without segments a row continues its last one."""
    if layout.segments is not None:
        return layout.segments
    return jnp.broadcast_to(state["last"][:, None], layout.positions.shape)


def stands(layout: Layout, state: State) -> Streams:
    """Where each of T new tokens stands: its index in the row and its segment, (B, T)."""
    return {"index": places(state, layout.positions.shape[1]), "segment": segments(layout, state)}


def store(state: State, new: Streams, layout: Layout, *, ring: bool = False) -> State:
    """Writes the valid ones of T new keys and values (B, T, K, H), and of what else is known of keys.

    A cache that is full drops what does not fit: whoever generates checks that the model's length
    suffices. A ring overwrites its oldest.
    """
    length, slots = layout.positions.shape[1], state["segment"].shape[1]
    valid = jnp.full_like(state["count"], length)
    if layout.lengths is not None:
        valid = layout.lengths.astype(valid.dtype)
    place = jnp.arange(length)[None]
    slot = places(state, length)
    kept = place < valid[:, None]
    if ring:
        kept &= place >= valid[:, None] - slots  # of tokens for one slot only the last
        slot = slot % slots
    slot = jnp.where(kept, slot, slots)

    def put(old, new):
        write = lambda old, new, slot: old.at[..., slot].set(new, mode="drop")
        return jax.vmap(write)(old, new.astype(old.dtype), slot)

    segment = segments(layout, state)
    return {
        **{name: put(state[name], jnp.moveaxis(x, 1, -1)) for name, x in new.items()},
        "segment": put(state["segment"], segment),
        "count": state["count"] + valid,
        "last": layout.last_segment(state["last"]).astype(jnp.int32),
    }


def attend_cache(
    q: jax.Array,
    query: Streams,
    state: State,
    score: Score,
    *,
    piece: int = PIECE,
    needed: Callable[[jax.Array], jax.Array] | None = None,
    read: Iterable[str] = (),
) -> tuple[jax.Array, jax.Array]:
    """Attention of T new queries to a cache: (o, lse) as `softmax.attend` gives them.

    Pieces of the cache follow one another and merge; those after every row's last token, or not
    `needed` (first slot → whether), are skipped. The score finds the key streams segment and index, and
    those named in `read`. A cache without v has its keys as values.
    """
    slots = state["segment"].shape[1]
    filled = jnp.max(state["count"])
    batch, length, heads, _ = q.shape
    values = "v" if "v" in state else "k"
    real = jnp.promote_types(jnp.float32, state[values].dtype)
    done = (
        jnp.zeros((batch, length, heads, state[values].shape[2]), real),
        jnp.full((batch, length, heads), -jnp.inf, real),
    )

    def look(done, first, size):
        def slots_of(name):
            x = state[name]
            x = lax.dynamic_slice_in_dim(x, first, size, x.ndim - 1)
            return jnp.moveaxis(x, -1, 1) if x.ndim > 2 else x

        def attended():
            key = {name: slots_of(name) for name in ("segment", *read)}
            key["index"] = first + jnp.arange(size)
            k, v = slots_of("k"), slots_of(values)
            return merge([done, attend(q, k, v, band(length, size), score, query=query, key=key)])

        wanted = first < filled
        if needed is not None:
            wanted &= needed(first)
        return lax.cond(wanted, attended, lambda: done)

    piece = min(piece, slots)
    whole = slots // piece
    firsts = jnp.arange(whole, dtype=jnp.int32) * piece
    done, _ = lax.scan(lambda done, first: (look(done, first, piece), None), done, firsts)
    return look(done, jnp.int32(whole * piece), slots % piece) if slots % piece else done


def attend_ring(q: jax.Array, query: Streams, state: State, score: Score) -> tuple[jax.Array, jax.Array]:
    """Attention of T new queries to a ring of `slots` keys, as (o, lse).

    Only the first `slots` queries can reach back into the ring. The score finds the key streams
    segment and index (B, slots), how many tokens of the row came before the key.
    """
    slots, length = state["segment"].shape[1], q.shape[1]
    near = {name: x[:, :slots] if x.ndim > 1 else x[:slots] for name, x in query.items()}
    # Slot s holds the latest token whose place is s modulo the slots.
    last = state["count"][:, None] - 1
    index = last - (last - jnp.arange(slots)[None]) % slots
    key = {"segment": state["segment"], "index": index}
    k, v = jnp.moveaxis(state["k"], -1, 1), jnp.moveaxis(state["v"], -1, 1)
    o, lse = attend(q[:, :slots], k, v, band(min(length, slots), slots), score, query=near, key=key)
    rest = max(0, length - slots)
    o = jnp.pad(o, ((0, 0), (0, rest), (0, 0), (0, 0)))
    return o, jnp.pad(lse, ((0, 0), (0, rest), (0, 0)), constant_values=-jnp.inf)
