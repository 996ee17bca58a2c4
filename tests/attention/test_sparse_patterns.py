"""Sparse patterns at the options at which they are another mechanism, and whom their tokens see."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from transformer_jax.attention.catalogue import build
from transformer_jax.attention.contract import Geometry
from transformer_jax.attention.definition import effective_matrix
from transformer_jax.attention.engines.softmax_plan import MAX_GROUPS, listed
from transformer_jax.conformance.subject import run
from transformer_jax.errors import BadInput

LENGTH = 23


def made(name, *, causal, **options):
    g = Geometry(width=8, heads=2, kv_heads=1, length=LENGTH, causal=causal)
    return build(name, g, rngs=nnx.Rngs(0), **options)


def x():
    return jnp.asarray(np.random.default_rng(0).standard_normal((2, LENGTH, 8)), jnp.float32)


def seen(mixer, i):
    """The keys to which the token at i gives weight."""
    return list(np.flatnonzero(effective_matrix(mixer, x())[0, 0, i]))


@pytest.mark.parametrize("causal", [True, False])
def test_a_window_without_gaps_is_a_sliding_window(causal):
    mixers = (
        made("dilated", causal=causal, window=4, dilation=1),
        made("sliding_window", causal=causal, window=4),
    )
    found, wanted = (run(mixer, x())[0] for mixer in mixers)
    np.testing.assert_allclose(found, wanted, atol=1e-6)


def test_a_dilated_window_counts_the_tokens_that_are_seen():
    assert seen(made("dilated", causal=True, window=3, dilation=4), 15) == [7, 11, 15]
    assert seen(made("dilated", causal=False, window=3, dilation=4), 15) == [7, 11, 15, 19]


@pytest.mark.parametrize("causal", [True, False])
def test_all_blocks_are_full_attention_and_tokens_see_those_listed_alone(causal):
    every = made("block_sparse", causal=causal, block=4, blocks=(tuple(range(6)),) * 6)
    found, wanted = (run(mixer, x())[0] for mixer in (every, made("full", causal=causal)))
    np.testing.assert_allclose(found, wanted, atol=1e-6)
    some = made("block_sparse", causal=causal, block=4, blocks=((0,), (1,), (2, 0, 3), (3,), (4,), (5,)))
    assert seen(some, 9) == [0, 1, 2, 3, 8, 9, *([] if causal else [10, 11, 12, 13, 14, 15])]
    assert some.plan(LENGTH, LENGTH).pairs == (7 if causal else 8) * 4 * 4


def test_a_mask_that_does_not_fit_is_refused_with_the_reason():
    with pytest.raises(BadInput, match="do not cover length=23"):
        made("block_sparse", causal=True, block=4, blocks=((0,),) * 5)
    with pytest.raises(BadInput, match=r"blocks\[1\]"):
        made("block_sparse", causal=True, block=12, blocks=((0,), (0,)))


def test_rows_of_many_lengths_are_few_groups_that_hold_each_list():
    lists = [list(range(n)) for n in range(1, 21)]
    groups = listed(lists, 4)
    assert len(groups) <= MAX_GROUPS
    found = {
        row: [b for b in keys if b >= 0] for g in groups for row, keys in zip(g.rows, g.lists, strict=True)
    }
    assert [found[row] for row in range(20)] == lists
