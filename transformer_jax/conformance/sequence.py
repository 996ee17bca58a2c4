"""Checks on several devices: a mesh changes nothing but where the numbers are."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec

from transformer_jax.attention.contract import Layout, Mixer
from transformer_jax.attention.core import CoreMixer
from transformer_jax.conformance.subject import Subject, agree, inputs, jit
from transformer_jax.parallel.mesh import BATCH, Axes, make_mesh, on

VALUES, GRADIENTS = 1e-5, 1e-4
"""Relative errors of float32; what selects by content is compared in float64, where near ties do not turn."""
LEAST = 1e-3
"""Of a gradient that is zero in exact arithmetic, so that 1e-7 of the whole may be left of it: rounding."""
LENGTH = 48


def sequence_changes_nothing(subject: Subject, axes: Axes) -> None:
    """On a mesh that cuts the sequence, values and gradients are those of one device; of padded rows and of
    packed documents as well, whose borders lie anywhere."""
    dtype = compared_in(subject.mixer)
    for kv_heads, (kind, layout) in zip((2, 4), layouts(subject).items(), strict=False):
        mixer = subject.build(dtype=dtype, length=LENGTH, kv_heads=kv_heads, rotary=100.0)
        x = inputs(4, LENGTH, dtype=jnp.dtype(dtype))
        y, gradients = differentiated(mixer, x, layout, axes)
        y_wanted, gradients_wanted = differentiated(mixer, x, layout, None)
        agree(y, y_wanted, within=VALUES, what=f"{kind}: values")
        what = f"{kind}: gradient of "
        agree(gradients, gradients_wanted, within=GRADIENTS, what=what, least=LEAST)


def compared_in(mixer: type[Mixer]) -> str:
    selects = issubclass(mixer, CoreMixer) and mixer.selection is not CoreMixer.selection
    return "float64" if selects else "float32"


def layouts(subject: Subject) -> dict[str, Layout]:
    """A plain batch, and one with all of padding and packing that the mechanism is defined for."""
    plain = Layout.plain(4, LENGTH)
    defined = subject.mixer.capability.defined
    lengths = jnp.array([LENGTH, 30, 7, 0]) if defined("padding") else None
    if not defined("packing"):
        return (
            {"plain": plain}
            if lengths is None
            else {"plain": plain, "padded": replace(plain, lengths=lengths)}
        )
    sizes = [7, 22, 2, LENGTH - 31]
    segments = np.repeat(np.arange(len(sizes)), sizes)
    positions = np.concatenate([np.arange(size) for size in sizes])
    rows = lambda x: jnp.broadcast_to(jnp.asarray(x, jnp.int32), (4, LENGTH))
    return {"plain": plain, "packed": Layout(rows(positions), rows(segments), lengths)}


def differentiated(mixer: Any, x: jax.Array, layout: Layout, axes: Axes | None) -> tuple:
    """y where it is valid, and the gradients in x and in the parameters of a weighted sum of it; on a mesh of
    `axes`, or on one device."""
    graph, learned, rest = nnx.split(mixer, nnx.Param, ...)
    mesh = None if axes is None else make_mesh(axes)
    if mesh is not None:
        cut = lambda x: PartitionSpec(BATCH, "sequence") if x.ndim > 1 else PartitionSpec(BATCH)
        x, layout = jax.tree.map(lambda x: jax.device_put(x, NamedSharding(mesh, cut(x))), (x, layout))

    def total(x, learned, layout):
        with on(mesh):
            y, _ = nnx.merge(graph, learned, rest)(x, layout)
        if layout.valid is not None:
            y = jnp.where(layout.valid[..., None], y, 0)
        weights = jnp.cos(1.0 + jnp.arange(y.size, dtype=y.dtype)).reshape(y.shape)
        return jnp.sum(y * weights), y

    (_, y), gradients = jit(jax.value_and_grad(total, (0, 1), has_aux=True))(x, learned, layout)
    return y, gradients
