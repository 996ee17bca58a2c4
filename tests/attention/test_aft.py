"""AFT-full against AFT-simple, which forms its weights in another way."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from transformer_jax.attention.contract import Geometry, Layout
from transformer_jax.attention.variants.aft_full import AFTFull
from transformer_jax.attention.variants.aft_simple import AFTSimple
from transformer_jax.conformance.subject import agree, run

pytestmark = pytest.mark.quick

CLOSE = 1e-6
"""‖found − wanted‖ / ‖wanted‖ in float32: some tens of terms summed in another order, 6e-8 each."""


@pytest.mark.parametrize("causal", [True, False])
def test_without_biases_full_is_simple(causal):
    """Also where the keys of a channel differ by hundreds, so that exponentials under- and overflow."""
    geometry = Geometry(width=8, heads=2, length=70, causal=causal)
    full, simple = (kind(geometry, rngs=nnx.Rngs(0)) for kind in (AFTFull, AFTSimple))
    full.u[...] = 0 * full.u[...]
    full.key.kernel[...] = simple.key.kernel[...] = 200 * simple.key.kernel[...]
    full.query, full.value, full.out = simple.query, simple.value, simple.out
    x = jnp.asarray(np.random.default_rng(0).standard_normal((2, 70, 8)), jnp.float32)
    y, wanted = (run(mixer, x, Layout.plain(2, 70))[0] for mixer in (full, simple))
    agree(y, wanted, within=CLOSE, what="outputs")
