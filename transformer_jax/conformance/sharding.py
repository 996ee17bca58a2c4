"""The checks on meshes: a program cut over eight devices computes what it does on one."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from transformer_jax.attention.contract import Layout, Mixer
from transformer_jax.attention.core import CoreMixer
from transformer_jax.conformance.meaning import EXACT, GRADIENT
from transformer_jax.conformance.subject import Subject, Undefined, agree, inputs, jit, plain
from transformer_jax.parallel.mesh import BATCH, Axes, make_mesh, on
from transformer_jax.parallel.rules import RULES

DEVICES = 8
ROWS, LENGTH = 4, 48
MESHES = (Axes(data=2, fsdp=2, tensor=2),)
SEQUENCE_MESHES = (
    Axes(data=1, sequence=8),
    Axes(data=2, sequence=4),
    Axes(data=1, fsdp=2, tensor=2, sequence=2),
)


def eight_host_devices() -> None:
    """Makes eight devices of this machine's CPU, for a process that has not used JAX yet."""
    with contextlib.suppress(RuntimeError):  # it has: the check says so
        jax.config.update("jax_num_cpu_devices", DEVICES)


def sharding_changes_nothing(subject: Subject) -> None:
    """With the batch, the parameters and the heads cut over eight devices, values and gradients are those of
    one."""
    on_meshes_as_on_one(subject, MESHES)


def sequence_changes_nothing(subject: Subject, meshes: Sequence[Axes] = SEQUENCE_MESHES) -> None:
    """The same with each sequence cut over devices."""
    if subject.mixer.capability.sequence == "refused":
        raise Undefined("its sequence cannot be cut over devices")
    on_meshes_as_on_one(subject, meshes)


def on_meshes_as_on_one(subject: Subject, meshes: Sequence[Axes]) -> None:
    """Compares values, and the gradients in x and in each parameter, of padded rows and of packed documents
    as well, whose borders lie anywhere: in float32, or in float64 where near ties of a selection would turn,
    or where the mechanism's own budget of float32 is wider than usual, so that its numbers on one device are
    as uncertain."""
    devices = host_devices()
    exact = needs_float64(subject)
    values = EXACT if exact else 1e-5
    # `least`: a gradient that is zero in exact arithmetic is known to an ulp of the whole, 1e-7 of it.
    slopes, least = (GRADIENT, 1e-4) if exact else (1e-4, 1e-3)
    with jax.default_device(devices[0]):
        for kv_heads, (kind, layout) in zip((2, 4), layouts(subject.mixer).items(), strict=False):
            dtype = "float64" if exact else "float32"
            mixer = subject.build(dtype=dtype, length=LENGTH, kv_heads=kv_heads, rotary=100.0)
            y, gradients = differentiated(mixer, layout, None)
            for axes in meshes:
                mesh = make_mesh(axes, devices)
                label = " × ".join(f"{name} {size}" for name, size in mesh.shape.items() if size > 1)
                y_cut, gradients_cut = differentiated(mixer, layout, mesh)
                agree(y_cut, y, within=values, what=f"{kind}: values on {label}")
                what = f"{kind}: gradient on {label} of "
                agree(gradients_cut, gradients, within=slopes, least=least, what=what)


def host_devices() -> list[jax.Device]:
    """Eight devices of this machine's CPU. Raises Undefined where the process does not have them."""
    try:
        devices = jax.devices("cpu")
    except RuntimeError:  # JAX_PLATFORMS leaves it out
        devices = []
    if len(devices) < DEVICES:
        raise Undefined(
            f"it takes {DEVICES} CPU devices and there are {len(devices)}: "
            f"XLA_FLAGS=--xla_force_host_platform_device_count={DEVICES} makes them"
        )
    return devices[:DEVICES]


def layouts(mixer: type[Mixer]) -> dict[str, Layout]:
    """A plain batch, and one with all of padding and packing that the mechanism is defined for."""
    simple = plain(ROWS, LENGTH)
    found, hard = {"plain": simple}, simple
    if mixer.capability.defined("padding"):
        lengths: Any = np.array([LENGTH, 30, 7, 0], np.int32)
        hard = replace(hard, lengths=lengths)
        found["padded"] = hard
    if mixer.capability.defined("packing"):
        sizes = [7, 22, 2, LENGTH - 31]

        def rows(parts) -> Any:
            return np.tile(np.concatenate(parts).astype(np.int32), (ROWS, 1))

        segments = rows([np.full(size, n) for n, size in enumerate(sizes)])
        hard = replace(hard, positions=rows([np.arange(size) for size in sizes]), segments=segments)
        found = {"plain": simple, "packed": hard}
    return found


def differentiated(mixer: Mixer, layout: Layout, mesh: Mesh | None) -> tuple[jax.Array, Any]:
    """y where it is valid, and the gradients in x and in the parameters of a weighted sum of it; on a mesh
    each array is cut as training cuts it."""
    dtype = np.dtype(mixer.geometry.dtype)
    x = inputs(ROWS, LENGTH, dtype=dtype)
    graph, learned, rest = nnx.split(mixer, nnx.Param, ...)
    is_variable = lambda x: isinstance(x, nnx.Variable)
    learned = jax.tree.map(lambda v: v.replace(np.asarray(v[...], dtype)), learned, is_leaf=is_variable)
    if mesh is not None:
        spec = lambda v: RULES.parameter(v.get_metadata().get("axes"), v.shape, mesh)
        place = lambda v: jax.device_put(v, NamedSharding(mesh, spec(v)))
        learned = jax.tree.map(place, learned, is_leaf=is_variable)
        cut = lambda x: PartitionSpec(BATCH, *["sequence"] * (x.ndim > 1))
        x, layout = jax.tree.map(lambda x: jax.device_put(x, NamedSharding(mesh, cut(x))), (x, layout))

    def total(learned, x, layout):
        with on(mesh):
            y, _ = nnx.merge(graph, learned, rest)(x, layout)
        if layout.valid is not None:
            y = jnp.where(layout.valid[..., None], y, 0)
        weights = jnp.cos(1.0 + jnp.arange(y.size, dtype=y.dtype)).reshape(y.shape)
        return jnp.sum(y * weights), y

    (_, y), gradients = jit(jax.value_and_grad(total, (0, 1), has_aux=True))(learned, x, layout)
    return y, gradients


def needs_float64(subject: Subject) -> bool:
    """Does it choose by content, or round more than others?"""
    mixer = subject.build(dtype="float32", length=LENGTH)
    return any(
        type(part).selection is not CoreMixer.selection
        or part.tolerance["float32"] > Mixer.tolerance["float32"]
        for part in (mixer, *getattr(mixer, "mixers", ()))
        if isinstance(part, CoreMixer)
    )
