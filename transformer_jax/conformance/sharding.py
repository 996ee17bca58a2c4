"""Checks on a mesh: a program cut over eight devices computes what it does on one."""

from __future__ import annotations

import contextlib

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from transformer_jax.attention.contract import Mixer
from transformer_jax.attention.core import CoreMixer
from transformer_jax.conformance.meaning import EXACT, GRADIENT
from transformer_jax.conformance.subject import Subject, Undefined, agree, inputs, jit, plain
from transformer_jax.parallel.mesh import BATCH, Axes, make_mesh, on
from transformer_jax.parallel.rules import RULES

DEVICES = 8
ROWS, LENGTH = 4, 48
MESHES = (Axes(data=2, fsdp=2, tensor=2),)


def eight_host_devices() -> None:
    """Makes eight devices of this machine's CPU, for a process that has not used JAX yet."""
    with contextlib.suppress(RuntimeError):  # it has: the check says so
        jax.config.update("jax_num_cpu_devices", DEVICES)


def sharding_changes_nothing(subject: Subject) -> None:
    """With the batch, the parameters and the heads cut over eight devices, values and gradients are those of
    one: in float32, or in float64 where near ties of a selection would turn, or where the mechanism's own
    budget of float32 is wider than usual, so that its gradients on one device are as uncertain."""
    for axes in MESHES:
        devices = host_devices()
        with jax.default_device(devices[0]):
            on_mesh_as_on_one(subject, make_mesh(axes, devices))


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


def on_mesh_as_on_one(subject: Subject, mesh: Mesh) -> None:
    """Compares values, and the gradients in x and in each parameter."""
    exact = needs_float64(subject)
    mixer = subject.build(dtype="float64" if exact else "float32", length=LENGTH)
    graph, learned, rest = nnx.split(mixer, nnx.Param, ...)
    variables, tree = jax.tree.flatten(learned, is_leaf=lambda x: isinstance(x, nnx.Variable))
    dtype = np.float64 if exact else np.float32
    x = inputs(ROWS, LENGTH, dtype=dtype)
    arrays = [np.asarray(v[...], dtype) for v in variables]

    def both(on_which):
        @jit
        def run(arrays, x):
            def total(arrays, x):
                values = [v.replace(a) for v, a in zip(variables, arrays, strict=True)]
                mixer = nnx.merge(graph, jax.tree.unflatten(tree, values), rest)
                y, _ = mixer(x, plain(ROWS, LENGTH))
                # Weights, and no sine of y: one near-zero normalizer makes y 5e4, where a sine has lost
                # five digits of what rounding left.
                weights = jnp.cos(1.0 + jnp.arange(y.size, dtype=y.dtype)).reshape(y.shape)
                return jnp.sum(weights * y), y

            with on(on_which):
                (_, y), gradients = jax.value_and_grad(total, (0, 1), has_aux=True)(arrays, x)
            return y, gradients

        return run

    y, gradients = both(None)(arrays, x)
    specs = [RULES.parameter(v.get_metadata().get("axes"), v.shape, mesh) for v in variables]
    cut = [jax.device_put(a, NamedSharding(mesh, spec)) for a, spec in zip(arrays, specs, strict=True)]
    spread = jax.device_put(x, NamedSharding(mesh, PartitionSpec(BATCH, "sequence")))
    y_cut, gradients_cut = both(mesh)(cut, spread)
    label = " × ".join(f"{name} {size}" for name, size in mesh.shape.items() if size > 1)
    agree(y_cut, y, within=EXACT if exact else 1e-5, what=f"values on {label}")
    # `least`: a gradient that is zero in exact arithmetic is known to an ulp of the whole, 1e-7 of it.
    within, least = (GRADIENT, 1e-4) if exact else (1e-4, 1e-3)
    agree(gradients_cut, gradients, within=within, least=least, what=f"gradient on {label} of ")


def needs_float64(subject: Subject) -> bool:
    """Does it choose by content, or round more than others?"""
    mixer = subject.build(dtype="float32", length=LENGTH)
    return any(
        type(part).selection is not CoreMixer.selection
        or part.tolerance["float32"] > Mixer.tolerance["float32"]
        for part in (mixer, *getattr(mixer, "mixers", ()))
        if isinstance(part, CoreMixer)
    )
