"""Attention without positions, which a causal mask alone tells (NoPE, arXiv:2305.19466)."""

from __future__ import annotations

from transformer_jax.attention.variants.full import Full


class Nope(Full):
    """Full attention that leaves out the rotary embedding, also where the model has one.

    So the hybrid `full+nope` of a rotary model turns in every second layer (arXiv:2501.18795 studies such
    hybrids). In a model without rotary embedding it is `full`, and only one without any positions is the
    paper's: there the causal mask alone tells the order of tokens (section 5.1, theorems 1 and 2). (The
    paper's models are causal.)
    """

    name = "nope"
    paper = "arXiv:2305.19466"

    def placed(self, x, positions):
        return x
