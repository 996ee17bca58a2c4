"""A sequence cut into interleaved ones, and put together again; a cache whose keys are its values."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

from transformer_jax.attention.contract import Layout
from transformer_jax.attention.engines import softmax_cache
from transformer_jax.attention.engines.interleaved import apart, together

pytestmark = pytest.mark.quick


@pytest.mark.parametrize("length", [1, 6, 7, 11])
def test_interleaved_rows_hold_every_third_token_and_go_together_again(length):
    x = jnp.arange(2 * length * 2).reshape(2, length, 2)
    rows = apart(x, 3)
    for row in range(2):
        for first in range(min(3, length)):
            wanted = x[row, first::3]
            np.testing.assert_array_equal(rows[3 * row + first, : len(wanted)], wanted)
    np.testing.assert_array_equal(together(rows, 3, length), x)


def test_a_cache_without_values_reads_its_keys_as_values():
    draw = np.random.default_rng(0)
    k = jnp.asarray(draw.standard_normal((1, 5, 1, 4)), jnp.float32)
    q = jnp.asarray(draw.standard_normal((1, 2, 2, 4)), jnp.float32)
    both = softmax_cache.empty(1, 1, 4, 8, "float32")
    keys_only = {name: x for name, x in both.items() if name != "v"}
    layout = Layout.plain(1, 5)
    both = softmax_cache.store(both, {"k": k, "v": k}, layout)
    keys_only = softmax_cache.store(keys_only, {"k": k}, layout)

    def score(qk, query, key, shared):
        return jnp.where(query["segment"][:, None] == key["segment"][None], qk, -jnp.inf)

    query = {"segment": jnp.zeros((1, 2), jnp.int32)}
    found, wanted = (softmax_cache.attend_cache(q, query, state, score)[0] for state in (keys_only, both))
    np.testing.assert_array_equal(found, wanted)
