"""Bytes moved and kept are those that one works out by hand."""

from __future__ import annotations

import pytest
from flax import nnx

from transformer_jax.attention import catalogue, moved
from transformer_jax.attention.contract import Geometry

WIDTH, HEADS, LENGTH, FLOAT = 16, 2, 32, 4
SIZE = WIDTH // HEADS


def of(name: str):
    geometry = Geometry(width=WIDTH, heads=HEADS, length=LENGTH)
    return moved.abstract(lambda: catalogue.build(name, geometry, rngs=nnx.Rngs(0)))


@pytest.mark.parametrize("batch", [1, 3])
def test_a_cache_is_read_whole_and_written_at_one_place(batch):
    step = moved.decode_bytes(*of("full"), batch)
    # Keys and values; the segment of each slot; how many there are, and the last segment.
    held = (2 * WIDTH * LENGTH + LENGTH + 2) * FLOAT * batch
    assert step.state == held
    assert step.read == 4 * WIDTH**2 * FLOAT + held + WIDTH * FLOAT * batch
    assert step.written == (2 * WIDTH + 1 + 1 + WIDTH) * FLOAT * batch


def test_a_recurrence_writes_all_of_its_state():
    step = moved.decode_bytes(*of("gru"))
    assert step.state == (WIDTH + 1) * FLOAT  # the last segment stands beside it
    assert step.written == 2 * WIDTH * FLOAT  # with the output


def test_what_is_kept_grows_with_the_tokens_and_leaves_out_the_parameters():
    graph, values = of("full")
    kept = [moved.kept_bytes(graph, values, 1, length) for length in (LENGTH // 2, LENGTH)]
    # x, q, k, v, o and the log of the sums: what flash attention keeps.
    assert kept[1] >= (5 * WIDTH + HEADS) * FLOAT * LENGTH and kept[1] == pytest.approx(2 * kept[0], rel=0.05)
