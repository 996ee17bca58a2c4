"""Forgetting attention where its sums grow large."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from transformer_jax.attention.catalogue import build
from transformer_jax.attention.contract import Geometry, Layout
from transformer_jax.conformance.subject import agree


def test_a_long_row_keeps_its_gates_in_float32():
    """log f sums up to −3,000, where float32 is coarse to 2e-4; the gates are kept finer, streams and all."""
    T = 4096
    x = np.random.default_rng(0).standard_normal((1, T, 8))
    outputs = []
    with jax.enable_x64(True):
        for dtype in ("float32", "float64"):
            mixer = build("forgetting", Geometry(width=8, length=T, dtype=dtype), rngs=nnx.Rngs(0))
            mixer.gate.kernel[...] = 0.1 * mixer.gate.kernel[...]  # so that x's own rounding does not show
            outputs.append(jax.jit(mixer)(jnp.asarray(x, dtype), Layout.plain(1, T))[0])
        agree(*outputs, within=1e-5, what="values")
