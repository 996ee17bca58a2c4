"""Settings of every test."""

from __future__ import annotations

import os

# Eight host devices, so that meshes can be tested on any machine. Must precede the first use of JAX.
os.environ.setdefault("XLA_FLAGS", "--xla_force_host_platform_device_count=8")

import jax  # noqa: E402

# Implicit rank promotion has hidden real bugs; in tests it is an error.
jax.config.update("jax_numpy_rank_promotion", "raise")
