"""What the cache of latent attention holds."""

from __future__ import annotations

from flax import nnx

from transformer_jax.attention.catalogue import build
from transformer_jax.attention.contract import Geometry


def test_the_cache_holds_a_latent_and_one_rotary_key_per_token():
    g = Geometry(width=16, heads=4, head_size=8, length=32)
    state = build("multi_head_latent", g, latent=12, rotary_size=2, rngs=nnx.Rngs(0)).init_state(3)
    assert {name: x.shape for name, x in state.items() if x.ndim > 2} == {"k": (3, 1, 12 + 2, 32)}
