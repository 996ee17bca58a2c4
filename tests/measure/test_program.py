"""What XLA made of a function is read truly."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import pytest

from transformer_jax.measure.program import compiled, compiled_temporaries, largest_array

pytestmark = pytest.mark.quick

X = jax.ShapeDtypeStruct((256, 16), jnp.float32)


def dense(x):
    return jax.nn.softmax(x @ x.T) @ x


def linear(x):
    return x @ (x.T @ x)


def test_temporaries_show_a_square_array():
    assert compiled_temporaries(dense, X) >= 256 * 256 * 4
    assert compiled_temporaries(linear, X) < 256 * 16 * 4
    assert compiled_temporaries(compiled(dense, X)) == compiled_temporaries(jax.jit(dense), X)


def test_the_largest_array_is_found():
    assert largest_array(dense, X) == 256 * 256
    assert largest_array(compiled(linear, X)) == 256 * 16


def test_a_mask_inside_a_fusion_cannot_hide():
    def masked(x):
        band = jnp.abs(jnp.arange(256)[:, None] - jnp.arange(256)[None, :]) < 3
        return jnp.where(band, 1.0, 0.0).sum(1)[:, None] * x

    assert largest_array(masked, X) == 256 * 256


def test_types_are_read_from_text_and_nothing_else_is():
    text = (
        'ROOT %a.1 = (bf16[8,1,3]{2,1,0}, pred[<=5]) f(%b), slice={[0:99]}, devices=[9,9]<=[81], op="g[777]"'
    )
    assert largest_array(text) == 24
    assert largest_array("f32[] constant(1)") == 1
