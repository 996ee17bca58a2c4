"""The rows of a batch over several processes: each makes those that its own devices hold."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
from jax.sharding import Sharding


def rows_here(rows: Sharding, batch: int) -> np.ndarray:
    """The numbers of the rows of a batch that the devices of this process hold, in order.

    Args:
      rows: how an array (batch,) is spread. batch: rows over all processes.
    """
    held = {index[0].indices(batch) for index in rows.addressable_devices_indices_map((batch,)).values()}
    return np.unique(np.concatenate([np.arange(*span) for span in held]))


def spread(local: np.ndarray, place: Sharding, rows: np.ndarray, batch: int, *, axis: int = 0) -> jax.Array:
    """One array over all devices from the rows that this process has made.

    Args:
      local: its rows, along `axis`. place: where the whole goes. rows: their numbers, as `rows_here` gives.
      batch: rows of the whole.
    """
    if len(rows) == batch and place.is_fully_addressable:
        return jax.device_put(local, place)
    shape = (*local.shape[:axis], batch, *local.shape[axis + 1 :])

    def part(index: Any) -> np.ndarray:
        wanted = np.searchsorted(rows, np.arange(*index[axis].indices(batch)))
        return local[(*index[:axis], wanted, *index[axis + 1 :])]

    return jax.make_array_from_callback(shape, place, part)
