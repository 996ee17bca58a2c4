"""Positions count from 0 in each segment, wherever a sequence is cut."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

from transformer_jax.model.positions import locate, nowhere, sinusoids

pytestmark = pytest.mark.quick


def test_segments_restart_the_count():
    segments = jnp.array([[0, 0, 0, 1, 1, 2], [5, 5, 5, 5, 5, 5]])
    layout, after = locate(6, 2, segments=segments)
    np.testing.assert_array_equal(layout.positions, [[0, 1, 2, 0, 1, 0], [0, 1, 2, 3, 4, 5]])
    np.testing.assert_array_equal(after["position"], [1, 6])
    np.testing.assert_array_equal(after["segment"], [2, 5])


@pytest.mark.parametrize("cut", range(7))
def test_a_cut_changes_no_position(cut):
    segments = jnp.array([[0, 0, 1, 1, 1, 2]])
    whole, end = locate(6, 1, segments=segments)
    first, middle = locate(cut, 1, segments=segments[:, :cut]) if cut else (None, nowhere(1))
    second, after = (
        locate(6 - cut, 1, segments=segments[:, cut:], before=middle) if cut < 6 else (None, middle)
    )
    pieces = [part.positions for part in (first, second) if part is not None]
    np.testing.assert_array_equal(jnp.concatenate(pieces, 1), whole.positions)
    np.testing.assert_array_equal(after["position"], end["position"])


def test_padding_does_not_count():
    _, after = locate(4, 3, lengths=jnp.array([4, 2, 0]))
    np.testing.assert_array_equal(after["position"], [4, 2, 0])
    later, _ = locate(1, 3, before=after)
    np.testing.assert_array_equal(later.positions, [[4], [2], [0]])


def test_sinusoids_turn_by_a_fixed_matrix_per_step():
    """arXiv:1706.03762, section 3.5: a shift by one position is one linear map, the same everywhere."""
    width = 8
    table = np.asarray(sinusoids(jnp.arange(8000)[None], width)[0], np.float64)
    shift = np.linalg.lstsq(table[:-1], table[1:], rcond=None)[0]
    # In float32 an angle of 8000 is known to 8000 · 2⁻²⁴ ≈ 5e-4.
    np.testing.assert_allclose(table[:-1] @ shift, table[1:], atol=1e-3)
    np.testing.assert_allclose(shift @ shift.T, np.eye(width), atol=1e-4)
