"""The mesh: which devices hold which part of the batch, the parameters, the heads and the sequence.

Four named axes, whatever the machine: `data` and `fsdp` cut the batch (fsdp cuts the parameters too),
`tensor` cuts heads and hidden channels, `sequence` cuts time. The axes are automatic: mechanisms are
written for whole arrays and never see a mesh. The engines alone ask for it, by `current`, where they
write collectives by hand.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import astuple, dataclass

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh

from transformer_jax.errors import BadInput

AXES = ("data", "fsdp", "tensor", "sequence")
BATCH = ("data", "fsdp")
"""The axes that cut the batch."""


@dataclass(frozen=True, kw_only=True)
class Axes:
    """How many devices lie along each axis of the mesh.

    Attributes:
      data: copies of the parameters, each with a part of the batch; None takes the devices that are left.
      fsdp: parts of the parameters and of the optimizer's state, and of the batch.
      tensor: parts of the heads and of the hidden channels.
      sequence: parts of each sequence.
    """

    data: int | None = None
    fsdp: int = 1
    tensor: int = 1
    sequence: int = 1

    def __post_init__(self):
        for name, value in zip(AXES, astuple(self), strict=True):
            if value is not None and value < 1:
                raise BadInput(f"mesh.{name}={value} must be at least 1.")


def make_mesh(axes: Axes, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """The mesh of all `devices` (default: all there are). Raises BadInput where the axes do not fit them."""
    devices = jax.devices() if devices is None else devices
    others = axes.fsdp * axes.tensor * axes.sequence
    data = axes.data or max(1, len(devices) // others)
    shape = (data, axes.fsdp, axes.tensor, axes.sequence)
    if math.prod(shape) != len(devices):
        wanted = " × ".join(f"{name} {size}" for name, size in zip(AXES, shape, strict=True))
        raise BadInput(
            f"A mesh of {wanted} has {math.prod(shape)} places for {len(devices)} device(s): choose axes "
            f"whose product is the number of devices, or leave mesh.data unset."
        )
    return Mesh(grid(shape, devices), AXES, axis_types=(AxisType.Auto,) * len(AXES))


def grid(shape: Sequence[int], devices: Sequence[jax.Device]) -> np.ndarray:
    """The devices in that shape. Only `data` crosses TPU slices, whose links are slow."""
    # Devices of a topology that is only compiled for know no slice: they are one.
    slices = len({getattr(device, "slice_index", 0) for device in devices})
    slices = slices if devices[0].platform == "tpu" else 1
    if slices == 1:
        return mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)
    data, *inner = shape
    if data % slices:
        raise BadInput(
            f"mesh.data={data} is no multiple of the {slices} slices: only the batch may be cut across them."
        )
    return mesh_utils.create_hybrid_device_mesh(
        (data // slices, *inner), (slices, 1, 1, 1), devices, allow_split_physical_axes=True
    )


_current: ContextVar[Mesh | None] = ContextVar("mesh", default=None)
_platform: ContextVar[str | None] = ContextVar("platform", default=None)


@contextmanager
def on(mesh: Mesh | None) -> Iterator[None]:
    """What is traced inside runs on `mesh`; with None, on no mesh, as on one device of the mesh around it."""
    token = _current.set(mesh)
    kind = _platform.set(_platform.get() if mesh is None else mesh.devices.flat[0].platform)
    try:
        yield
    finally:
        _platform.reset(kind)
        _current.reset(token)


def current() -> Mesh | None:
    """The mesh of the program that is being traced."""
    return _current.get()


def cuts_sequence() -> bool:
    """Does the program that is being traced hold a part of each sequence per device?"""
    mesh = current()
    return mesh is not None and mesh.shape["sequence"] > 1


def cuts_parameters() -> bool:
    """Does the program that is being traced hold a part of each parameter per device?"""
    mesh = current()
    return mesh is not None and mesh.shape["fsdp"] > 1


def platform() -> str:
    """What the program that is being traced will run on: "cpu", "gpu" or "tpu". That of its mesh, which may
    be of devices that are not here; without a mesh, JAX's own."""
    return _platform.get() or jax.default_backend()


def parts_along(axes: Sequence[str]) -> int:
    """Into how many parts the mesh of the program that is being traced cuts what lies along these axes."""
    mesh = current()
    return 1 if mesh is None else math.prod(mesh.shape[axis] for axis in axes)
