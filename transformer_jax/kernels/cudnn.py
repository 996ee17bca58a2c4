"""Softmax attention over everything, or everything before, on an NVIDIA GPU: cuDNN's fused kernel."""

from __future__ import annotations

import jax

NAME = "cudnn"
LARGEST = 128
"""Channels of a head that cuDNN takes on every GPU that it runs on."""


def refusal(q, k, v, reach: tuple[int | None, int | None] | None, *, capped: bool, segmented: bool) -> str:
    """Why the kernel cannot take (B, T, N, H), (B, S, K, H), (B, S, K, M); empty where it can.

    Args:
      reach: how many keys before and after its own a query sees, None without bound; None for another rule.
    """
    if reach not in ((None, 0), (None, None)):
        return "cuDNN attention sees everything, or everything before"
    if capped:
        return "cuDNN attention caps no scores"
    if segmented:
        return "cuDNN attention knows neither packed rows nor padding that a query could see"
    if {x.dtype.name for x in (q, k, v)} not in ({"bfloat16"}, {"float16"}):
        return f"cuDNN attention computes in bfloat16 or float16, not {q.dtype.name}"
    size = q.shape[-1]
    if v.shape[-1] != size or size % 8 or size > LARGEST:
        return f"cuDNN attention takes heads of one size, a multiple of 8 up to {LARGEST}"
    return ""


def attention(q: jax.Array, k: jax.Array, v: jax.Array, *, scale: float, causal: bool) -> jax.Array:
    """softmax(scale q kᵀ) v: (B, T, N, H) of q (B, T, N, H), k and v (B, S, K, H)."""
    return jax.nn.dot_product_attention(q, k, v, scale=scale, is_causal=causal, implementation="cudnn")
