"""Settings of every test."""

from __future__ import annotations

import jax

# Implicit rank promotion has hidden real bugs; in tests it is an error.
jax.config.update("jax_numpy_rank_promotion", "raise")
