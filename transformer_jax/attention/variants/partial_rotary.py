"""Attention with rotary positions on a part of the channels (GPT-NeoX, arXiv:2204.06745)."""

from __future__ import annotations

import jax.numpy as jnp
from flax import nnx

from transformer_jax.attention.contract import Capability
from transformer_jax.attention.rotary import rotate
from transformer_jax.attention.variants.full import Full
from transformer_jax.errors import BadInput


class PartialRotary(Full):
    """Full attention that turns the first `fraction` of each head's channels and leaves the others alone.

    The paper's section "Rotary Positional Embeddings" turns the first quarter. The rates are those of a head
    of that many channels, base^(−2i/(fraction · H)), as the authors' code has it. It turns in every model: by
    the model's base where the model is rotary, otherwise by 10000.
    """

    name = "partial_rotary"
    paper = "arXiv:2204.06745"
    capability = Capability(
        refused={"cross": "tokens of two sequences have no distance that a rotation could tell."}
    )

    def __init__(self, geometry, *, fraction: float = 0.25, rngs: nnx.Rngs):
        turned = round(fraction * geometry.head_size)
        if not 0 < fraction <= 1 or turned < 2 or turned % 2:
            raise BadInput(
                f"partial_rotary fraction={fraction} of head_size={geometry.head_size} is {turned} channels, "
                f"which turn in pairs: choose a fraction up to 1 that makes them an even number."
            )
        super().__init__(geometry, rngs=rngs)
        self.turned = turned

    def placed(self, x, positions):
        base = self.geometry.rotary or 10_000.0
        turned = rotate(x[..., : self.turned], positions, base)
        return jnp.concatenate([turned, x[..., self.turned :]], axis=-1)
