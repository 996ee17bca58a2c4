"""What a mechanism means, run as it is written: the definition over all heads, and its T×T matrix."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from transformer_jax.attention.contract import Layout
from transformer_jax.attention.heads import HeadMixer, Streams, repeat_heads


def by_definition(mixer: HeadMixer, streams: Streams) -> jax.Array:
    """The definition, head by head and row by row: streams (B, T, heads, …) → (B, T, N, size of v).

    Rows are plain: unpadded and of one segment.
    """
    streams = {name: repeat_heads(x, mixer.geometry.heads) for name, x in streams.items()}
    one_head = lambda streams: mixer.definition(**streams)
    return jax.vmap(jax.vmap(one_head, in_axes=1, out_axes=1))(streams)


def effective_matrix(mixer: HeadMixer, x: jax.Array) -> jax.Array:
    """x (B, T, D) → (B, N, T, T): entry (t, s) is how much of value s reaches output t.

    Every definition is linear in v, so applied to v = I it yields the matrix. For softmax attention
    that is the attention map; a recurrence has one as well, whose entries may be negative.
    """
    streams, _ = mixer.streams(x, Layout.plain(*x.shape[:2]))
    length, heads = x.shape[1], streams["v"].shape[2]
    identity = jnp.eye(length, dtype=streams["v"].dtype)[None, :, None, :]
    every = jnp.broadcast_to(identity, (x.shape[0], length, heads, length))
    return by_definition(mixer, streams | {"v": every}).transpose(0, 2, 1, 3)
