"""Positions: counted within segments, and the sinusoidal table that marks them."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from transformer_jax.attention.contract import Layout


def nowhere(batch: int) -> dict[str, jax.Array]:
    """The place before the first token: position 0, in no segment yet."""
    return {"position": jnp.zeros(batch, jnp.int32), "segment": jnp.full(batch, -1, jnp.int32)}


def locate(
    length: int,
    batch: int,
    *,
    segments: jax.Array | None = None,
    lengths: jax.Array | None = None,
    before: dict[str, jax.Array] | None = None,
) -> tuple[Layout, dict[str, jax.Array]]:
    """Positions of the next `length` tokens, counted from 0 in each segment.

    Args:
      segments: (B, T) segment of each token, or None for one per row.
      lengths: (B,) valid tokens per row, or None for all.
      before: what the previous call returned, to continue its rows: the next position (B,) and the
        segment of the last token (B,).

    Returns:
      The layout (B, T), and what the next call needs to continue.
    """
    before = before or nowhere(batch)
    start = before["position"]
    time = jnp.broadcast_to(jnp.arange(length, dtype=jnp.int32), (batch, length))
    layout = Layout(start[:, None] + time, segments, lengths)
    begins = layout.starts(before["segment"])
    if begins is not None:
        origin = jax.lax.cummax(jnp.where(begins, time, -1), axis=1)
        layout = Layout(jnp.where(origin < 0, layout.positions, time - origin), segments, lengths)
    count = jnp.full(batch, length) if lengths is None else lengths
    last = jnp.take_along_axis(layout.positions, jnp.maximum(count - 1, 0)[:, None], axis=1)[:, 0]
    after = {
        "position": jnp.where(count > 0, last + 1, start),
        "segment": layout.last_segment(before["segment"]),
    }
    return layout, after


def sinusoids(positions: jax.Array, width: int) -> jax.Array:
    """(B, T) -> (B, T, D) float32 (arXiv:1706.03762, section 3.5; sines first, then cosines)."""
    half = (width + 1) // 2
    rates = 10_000.0 ** (-jnp.arange(half, dtype=jnp.float32) / half)
    angles = positions[..., None].astype(jnp.float32) * rates[None, None]
    return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)[..., :width]
