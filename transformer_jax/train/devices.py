"""Where things live: the state on every device, the rows of a batch spread over them."""

from __future__ import annotations

from typing import NamedTuple

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec, SingleDeviceSharding

from transformer_jax.errors import BadInput


class Placement(NamedTuple):
    """everywhere: of the state. rows: of a batch (B, ...). stacked: of a stack of batches (k, B, ...)."""

    everywhere: jax.sharding.Sharding
    rows: jax.sharding.Sharding
    stacked: jax.sharding.Sharding


def placement() -> Placement:
    """Data-parallel over all devices that are visible."""
    devices = jax.devices()
    if len(devices) == 1:
        return Placement(*[SingleDeviceSharding(devices[0])] * 3)
    mesh = Mesh(np.array(devices), ("data",), axis_types=(AxisType.Auto,))
    specs = (PartitionSpec(), PartitionSpec("data"), PartitionSpec(None, "data"))
    return Placement(*[NamedSharding(mesh, spec) for spec in specs])


def require_divisible(batch: int, microbatches: int = 1) -> None:
    """Raises BadInput where the rows of a (micro)batch do not divide over the devices."""
    count = jax.device_count()
    if batch % (count * microbatches):
        parts = f"{count} devices" + (f" times {microbatches} microbatches" if microbatches > 1 else "")
        raise BadInput(
            f"A batch of {batch} does not divide over {parts}: choose a multiple of {count * microbatches}."
        )
