"""Short convolutions: of each channel with itself, causal, and of heads, centred on the token."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx

from transformer_jax.attention.contract import Layout, State
from transformer_jax.errors import BadInput
from transformer_jax.parallel.mesh import cuts_sequence
from transformer_jax.parallel.sequence import along_time, halo


class ShortConvolution(nnx.Module):
    """y_t = Σ_j w_j ⊙ x_{t−taps+1+j}: depthwise, causal, without bias.

    It sees nothing of an earlier segment. Its state is each row's last taps − 1 valid inputs.
    """

    def __init__(self, channels: int, taps: int, *, dtype: str = "float32", rngs: nnx.Rngs):
        if taps < 1:
            raise BadInput(f"A short convolution of {taps} taps sees nothing: give at least 1.")
        self.taps, self.channels, self.dtype = taps, channels, dtype
        bound = taps**-0.5  # variance 1 / (3 taps), the usual start of a convolution
        self.kernel = nnx.Param(
            jax.random.uniform(rngs.params(), (taps, channels), minval=-bound, maxval=bound)
        )

    def __call__(self, x: jax.Array, layout: Layout, state: State | None = None):
        """x (B, T, C) → y (B, T, C), and the state after each row's last valid token."""
        batch, length, _ = x.shape
        x, before = x.astype(self.dtype), self.taps - 1
        kernel = self.kernel[...].astype(self.dtype)
        if state is None and before and cuts_sequence():
            return along_time(_on_shard, x, layout.segments, whole=kernel), None
        memory = self.init_state(batch) if state is None else state
        seen = jnp.concatenate([memory["inputs"].astype(x.dtype), x], axis=1)
        segments = layout.segments
        if segments is not None:
            earlier = jnp.broadcast_to(memory["segment"][:, None], (batch, before))
            segments = jnp.concatenate([earlier, segments], axis=1)
        y = _convolved(kernel, seen, segments)
        return y, None if state is None else self._after(seen, segments, layout, memory)

    def flops(self, batch: int, length: int) -> int:
        """Matrix-product FLOPs, without segments: none of a few taps, which are shifted copies."""
        long = _is_long(self.taps, length)
        return product_flops(batch, length, self.channels, 1, self.taps) if long else 0

    def init_state(self, batch: int) -> State:
        return {
            "inputs": jnp.zeros((batch, self.taps - 1, self.channels), self.dtype),
            "segment": jnp.full((batch,), -1, jnp.int32),
        }

    def _after(self, seen, segments, layout: Layout, memory: State) -> State:
        """The last inputs of the segment that is open after the last valid token, 0 for those of others."""
        batch, before = seen.shape[0], self.taps - 1
        ends = layout.lengths if layout.lengths is not None else jnp.full((batch,), layout.positions.shape[1])
        places = ends[:, None] + jnp.arange(before)[None]
        inputs = jnp.take_along_axis(seen, places[..., None], axis=1)
        last = layout.last_segment(memory["segment"])
        if segments is not None:
            same = jnp.take_along_axis(segments, places, axis=1) == last[:, None]
            inputs = jnp.where(same[..., None], inputs, 0)
        return {"inputs": inputs, "segment": last}


def _convolved(kernel: jax.Array, seen: jax.Array, segments: jax.Array | None) -> jax.Array:
    """y (B, T, C) with kernel (taps, C), from inputs and segments of taps − 1 tokens more."""
    before = len(kernel) - 1
    length = seen.shape[1] - before
    if segments is None and _is_long(len(kernel), length):
        return _by_products(seen[..., None], kernel.T)[..., 0]
    kernel = kernel[:, None, None]
    y = seen[:, before:] * kernel[-1]
    for j in range(before):
        tap = seen[:, j : j + length]
        if segments is not None:
            same = segments[:, j : j + length] == segments[:, before:]
            tap = jnp.where(same[..., None], tap, 0)
        y = y + tap * kernel[j]
    return y


def _on_shard(x: jax.Array, segments: jax.Array | None, kernel: jax.Array) -> jax.Array:
    """The same of a shard, whose first tokens are convolved with the last ones of the shard before."""
    return _convolved(kernel, *halo((x, segments), len(kernel) - 1))


def centred(v: jax.Array, kernel: jax.Array) -> jax.Array:
    """Σ_j kernel_j v_{t+j}, j around 0: v (B, T, N, H) with kernel (N, taps), zeros beyond the ends."""
    reach = kernel.shape[1] // 2
    if cuts_sequence():
        return along_time(lambda v, kernel: _by_products(halo(v, reach, reach), kernel), v, whole=kernel)
    return _by_products(jnp.pad(v, ((0, 0), (reach, reach), (0, 0), (0, 0))), kernel)


BLOCK = 128
"""Tokens that `_by_products` convolves by one product."""
LONG = 16
"""Taps from which on a convolution is such products: on CPUs a few shifted copies are faster."""


def _is_long(taps: int, length: int) -> bool:
    return LONG <= taps <= length


def _by_products(padded: jax.Array, kernel: jax.Array) -> jax.Array:
    """Σ_j kernel_j x_{t+j}: x (B, T + taps − 1, N, H) with kernel (N, taps) → (B, T, N, H).

    A block of tokens is a product with a matrix whose diagonals are the taps. Of the gradient of shifted
    copies, one for each tap, a TPU's compiler keeps them all, and a CPU's reads them one after another.
    """
    batch, _, heads, size = padded.shape
    before = kernel.shape[1] - 1
    length = padded.shape[1] - before
    block, count = _blocks(length, before)
    tap = jnp.arange(block + before)[None] - jnp.arange(block)[:, None]
    inside = (tap >= 0) & (tap <= before)
    band = jnp.where(inside, kernel[:, jnp.clip(tap, 0, before)], 0).astype(padded.dtype)
    missing = (count + 1) * block - padded.shape[1]
    blocks = jnp.pad(padded, ((0, 0), (0, missing), (0, 0), (0, 0)))
    blocks = blocks.reshape(batch, count + 1, block, heads, size)
    seen = jnp.concatenate([blocks[:, :-1], blocks[:, 1:, :before]], axis=2)
    y = jnp.einsum("nij,bcjnh->bcinh", band, seen)
    return y.reshape(batch, count * block, heads, size)[:, :length]


def _blocks(length: int, before: int) -> tuple[int, int]:
    """Tokens of a block, which must reach no further than into the next, and how many there are."""
    block = max(min(BLOCK, length), before)
    return block, -(-length // block)


def product_flops(batch: int, length: int, heads: int, size: int, taps: int) -> int:
    """Matrix-product FLOPs of `_by_products`."""
    block, count = _blocks(length, taps - 1)
    return 2 * batch * count * block * (block + taps - 1) * heads * size
