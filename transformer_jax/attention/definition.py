"""What a mechanism means, run as it is written: the definition over all heads, and its T×T matrix."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from transformer_jax.attention.contract import Layout
from transformer_jax.attention.core import CoreMixer, Streams, repeat_heads
from transformer_jax.errors import BadInput


def by_definition(mixer: CoreMixer, streams: Streams) -> jax.Array:
    """The definition, head by head and row by row: streams (B, T, heads, …) → (B, T, N, size of v).

    Rows are plain: unpadded and of one segment.
    """
    streams = {name: repeat_heads(x, mixer.mixed_heads) for name, x in streams.items()}
    one_head = jax.vmap(lambda streams, weights: mixer.definition(**streams, **weights), (1, 0), 1)
    return jax.vmap(one_head, (0, None))(streams, mixer.weights())


def effective_matrix(mixer: CoreMixer, x: jax.Array) -> jax.Array:
    """x (B, T, D) → (B, N, T, T): entry (t, s) is how much of value s reaches output t. A mechanism that
    writes R values per token gives (B, N, T, T·R), those of a token side by side.

    Unless a mechanism says `no_matrix`, its definition is linear in v: applied to v = I it yields the matrix.
    For softmax attention that is the attention map; a recurrence has one as well, whose entries may be
    negative.

    Raises BadInput where the mechanism has none.
    """
    if mixer.no_matrix:
        raise BadInput(f"{mixer.name} has no effective matrix: {mixer.no_matrix}")
    streams, _ = mixer.streams(x, Layout.plain(*x.shape[:2]))
    length, heads = streams["v"].shape[1:3]
    identity = jnp.eye(length, dtype=streams["v"].dtype)[None, :, None, :]
    every = jnp.broadcast_to(identity, (x.shape[0], length, heads, length))
    return by_definition(mixer, streams | {"v": every}).transpose(0, 2, 1, 3)
