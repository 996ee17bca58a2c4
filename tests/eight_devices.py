"""What the fixture `on_eight_devices` starts its process with."""

from __future__ import annotations

import jax

from transformer_jax.conformance.sharding import eight_host_devices


def begin() -> None:
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_numpy_rank_promotion", "raise")
    eight_host_devices()
