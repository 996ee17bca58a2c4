"""Attention between normalized queries and keys (ViT-22B, arXiv:2302.05442; Qwen3, arXiv:2505.09388)."""

from __future__ import annotations

import jax.numpy as jnp
from flax import nnx

from transformer_jax.attention.variants.full import Full


class QKNorm(Full):
    """Full attention in which each head's q and k have a root mean square of one, times a learned scale.

    ViT-22B has it in section 2, "QK Normalization". The norm comes before the rotary embedding, and the
    logits are still divided by √H. ViT-22B's LayerNorm is without centering and bias, which makes it this RMS
    norm, whose scale per channel the heads share, as in Qwen3. The idea is older: arXiv:2010.04245 has unit
    vectors and one learned temperature in place of 1/√H. Some codes (OLMo 2) normalize all heads together.
    """

    name = "qk_norm"
    paper = "arXiv:2302.05442"

    def __init__(self, geometry, *, rngs: nnx.Rngs):
        super().__init__(geometry, rngs=rngs)
        norm = lambda: nnx.RMSNorm(geometry.head_size, dtype=jnp.dtype(geometry.dtype), rngs=rngs)
        self.query_norm, self.key_norm = norm(), norm()

    def projected(self, x, source):
        """softmax(LN(X W^Q) LN(X W^K)ᵀ / √H) V: the core is that of full attention."""
        q, k, v = super().projected(x, source)
        return self.query_norm(q), self.key_norm(k), v
