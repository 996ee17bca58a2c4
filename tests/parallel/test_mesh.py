"""The grid of devices: every one of them once, and the inner axes within one slice of a TPU."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest

from transformer_jax.errors import BadInput
from transformer_jax.parallel.mesh import grid

pytestmark = pytest.mark.quick


@dataclass(frozen=True)
class Chip:
    """What a device of TPU v5e tells of itself: here of two slices of 2×2."""

    id: int
    platform: str = "tpu"
    device_kind: str = "TPU v5 lite"
    core_on_chip: int = 0
    process_index: int = 0

    @property
    def slice_index(self) -> int:
        return self.id // 4

    @property
    def coords(self) -> tuple[int, int, int]:
        return self.id % 2, self.id // 2 % 2, 0


CHIPS = [Chip(i) for i in range(8)]


@pytest.mark.parametrize("shape", [(2, 4, 1, 1), (4, 1, 2, 1), (2, 2, 1, 2), (8, 1, 1, 1)])
def test_only_data_crosses_slices(shape):
    placed = grid(shape, CHIPS)
    assert placed.shape == shape and sorted(chip.id for chip in placed.flat) == list(range(8))
    slices = np.vectorize(lambda chip: chip.slice_index)(placed).reshape(shape[0], -1)
    assert (slices == slices[:, :1]).all()


def test_axes_that_would_cross_slices_are_refused():
    with pytest.raises(BadInput, match="mesh.data=1 is no multiple of the 2 slices"):
        grid((1, 8, 1, 1), CHIPS)
