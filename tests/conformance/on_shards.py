"""What `test_sequence` asks of a process with eight devices."""

from __future__ import annotations

import re

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec

from transformer_jax.attention.catalogue import find
from transformer_jax.attention.contract import Layout
from transformer_jax.attention.engines.forms import Recurrence, recur
from transformer_jax.conformance.sharding import sequence_changes_nothing
from transformer_jax.conformance.subject import Subject, optimized
from transformer_jax.errors import BadInput
from transformer_jax.parallel.mesh import Axes, make_mesh, on

PER_DEVICE = 256


def failure(name: str, direction: str, meshes: tuple[Axes, ...]) -> str:
    """What `sequence_changes_nothing` finds on these meshes; nothing where it passes."""
    mixer = find(name)
    try:
        with jax.enable_x64(True), optimized(False):
            sequence_changes_nothing(Subject(mixer, direction == "causal", dict(mixer.small)), meshes)
    except Exception as failure:
        return f"{type(failure).__name__}: {failure}"
    return ""


def programs(names: list[str]) -> dict:
    """Of a gradient on 2 and on 8 devices with as many tokens each: temporaries per device, in bytes, and
    how often it gathers and permutes."""
    return {name: {n: program(name, n) for n in (2, 8)} for name in names}


def program(name: str, devices: int) -> dict:
    length = devices * PER_DEVICE
    mixer = Subject(find(name), True, dict(find(name).small)).build(dtype="float32", length=length, width=32)
    mesh = make_mesh(Axes(data=1, sequence=devices), jax.devices()[:devices])
    place = NamedSharding(mesh, PartitionSpec(None, "sequence"))
    graph, values = nnx.split(mixer)

    @jax.grad
    def gradient(x, values):
        with on(mesh):
            return jnp.sum(jnp.sin(nnx.merge(graph, values)(x, Layout.plain(1, length))[0]))

    x = jax.ShapeDtypeStruct((1, length, 32), jnp.float32, sharding=place)
    compiled = jax.jit(gradient).lower(x, values).compile()
    count = lambda operation: len(re.findall(rf" {operation}(-start)?\(", compiled.as_text()))
    return {
        "temporaries": compiled.memory_analysis().temp_size_in_bytes,
        "gathers": count("all-gather"),
        "permutes": count("collective-permute"),
    }


def bonus() -> float:
    """‖o on eight devices − o on one‖ / ‖o‖ of a decaying recurrence with a bonus, which no mechanism of the
    catalogue has."""
    layout, keys = Layout.plain(2, 64), jax.random.split(jax.random.key(0), 3)
    q, k, v = (jax.random.normal(key, (2, 64, 2, 4)) for key in keys)
    r = Recurrence(q=q, k=k, v=v, bonus=jnp.full((2, 4), 0.3), log_decay=-jnp.abs(q[..., 0]))

    def run(r):
        with on(make_mesh(Axes(data=1, sequence=8))):
            return recur(r, layout)[0]

    wanted, _ = recur(r, layout)
    return float(jnp.linalg.norm(jax.jit(run)(r) - wanted) / jnp.linalg.norm(wanted))


def refusal(name: str, length: int) -> str:
    mixer = Subject(find(name), True).build(dtype="float32")
    try:
        with on(make_mesh(Axes(data=1, sequence=8))):
            mixer(jnp.zeros((1, length, 16)), Layout.plain(1, length))
    except BadInput as sentence:
        return str(sentence)
    return ""
