"""What `test_sequence` asks of a process with eight devices."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec

from transformer_jax.attention.catalogue import build, find
from transformer_jax.attention.contract import Geometry, Layout
from transformer_jax.attention.engines import softmax_sharded
from transformer_jax.attention.engines.forms import Recurrence, recur
from transformer_jax.attention.engines.softmax_plan import band
from transformer_jax.conformance import sharding
from transformer_jax.conformance.sharding import sequence_changes_nothing
from transformer_jax.conformance.subject import Subject, agree, inputs, jit, optimized
from transformer_jax.errors import BadInput
from transformer_jax.kernels.choice import executing, recording
from transformer_jax.parallel.mesh import Axes, make_mesh, on

PER_DEVICE = 256


def failure(name: str, direction: str, meshes: tuple[Axes, ...], **options) -> str:
    """What `sequence_changes_nothing` finds on these meshes; nothing where it passes."""
    mixer = find(name)
    subject = Subject(mixer, direction == "causal", dict(mixer.small) | options)
    try:
        with jax.enable_x64(True), optimized(False):
            sequence_changes_nothing(subject, meshes)
    except Exception as failure:
        return f"{type(failure).__name__}: {failure}"
    return ""


@dataclass(frozen=True)
class Program:
    """Of a gradient in x and in all parameters, on one of its devices.

    Attributes:
      temporaries: in bytes. permutes: how many collective-permutes stand in it.
      gathered: numbers of the largest array that an all-gather, or an all-to-all, makes. streamed: those of
        the smallest stream of the whole sequence, one head of its tokens.
    """

    temporaries: int
    permutes: int
    gathered: int
    streamed: int


def program(subject: Subject, devices: int, per_device: int = PER_DEVICE) -> Program:
    """On so many devices, with so many tokens each."""
    length = devices * per_device
    mixer = subject.build(dtype="float32", length=length, width=32)
    mesh = make_mesh(Axes(data=1, sequence=devices), jax.devices()[:devices])
    place = NamedSharding(mesh, PartitionSpec(None, "sequence"))
    graph, learned, rest = nnx.split(mixer, nnx.Param, ...)

    def total(x, learned):
        with on(mesh):
            return jnp.sum(jnp.sin(nnx.merge(graph, learned, rest)(x, Layout.plain(1, length))[0]))

    x = jax.ShapeDtypeStruct((1, length, 32), jnp.float32, sharding=place)
    compiled = jit(jax.grad(total, (0, 1))).lower(x, learned).compile()
    text = compiled.as_text()
    gathers = re.findall(r"= (.*?) all-(?:gather|to-all)(?:-start)?\(", text)
    shapes = [shape for results in gathers for shape in re.findall(r"\w+\[([\d,]+)\]", results)]
    return Program(
        temporaries=compiled.memory_analysis().temp_size_in_bytes,
        permutes=len(re.findall(r" collective-permute(?:-start)?\(", text)),
        gathered=max((math.prod(map(int, shape.split(","))) for shape in shapes), default=0),
        streamed=length * mixer.geometry.head_size,
    )


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


def few_keys(kv_heads: int) -> tuple[float, int, int]:
    """Of full attention in both directions with 16 query heads: ‖y on eight devices − y on one‖ / ‖y‖, and
    how many all-gathers and collective-permutes stand in its program."""
    mixer = Subject(find("full"), False).build(dtype="float32", length=64, heads=16, kv_heads=kv_heads)
    x, mesh = inputs(2, 64, dtype=np.float32), make_mesh(Axes(data=1, sequence=8))
    graph, values = nnx.split(mixer)

    def run(x, values):
        return nnx.merge(graph, values)(x, Layout.plain(2, 64))[0]

    def run_cut(x, values):
        with on(mesh):
            return run(x, values)

    wanted = jit(run)(x, values)
    cut = jax.device_put(x, NamedSharding(mesh, PartitionSpec(None, "sequence")))
    compiled = jit(run_cut).lower(cut, values).compile()
    text = compiled.as_text()
    gathers, permutes = (
        len(re.findall(rf" {kind}(?:-start)?\(", text)) for kind in ("all-gather", "collective-permute")
    )
    y = jax.device_get(jit(run_cut)(cut, values))
    return float(np.linalg.norm(y - wanted) / np.linalg.norm(wanted)), gathers, permutes


def way(queries: int, keys: int, devices: int) -> str:
    """How keys come to queries that see them all, of four heads each."""
    q, k = (jax.ShapeDtypeStruct((1, length, 4, 16), jnp.float32) for length in (queries, keys))
    with on(make_mesh(Axes(data=1, sequence=devices), jax.devices()[:devices])):
        return softmax_sharded.way(q, k, k, band(queries, keys))


def refusal(name: str, length: int) -> str:
    mixer = Subject(find(name), True).build(dtype="float32")
    try:
        with on(make_mesh(Axes(data=1, sequence=8))):
            mixer(jnp.zeros((1, length, 16)), Layout.plain(1, length))
    except BadInput as sentence:
        return str(sentence)
    return ""


def kernel_failure(
    name: str, direction: str, axes: Axes, *, kernel: str = "splash", slopes: float = 1e-4, **options
) -> str:
    """How the kernel, interpreted, on shards of a sequence differs from the engine on one device, in values
    or gradients, plain and packed; nothing where it does not. A refusal is its sentence."""
    mixer = find(name)
    subject = Subject(mixer, direction == "causal", dict(mixer.small) | options)
    build = partial(subject.build, dtype="float32", length=sharding.LENGTH, kv_heads=2)
    mesh = make_mesh(axes)
    try:
        for kind, layout in sharding.layouts(mixer).items():
            wanted = sharding.differentiated(build(execution="xla"), layout, None)
            with recording() as heard:
                found = sharding.differentiated(build(execution="interpret"), layout, mesh)
            assert heard == {name: {f"{kernel} (interpreted)"}}, heard
            agree(found[0], wanted[0], within=1e-5, what=f"{kind}: values")
            agree(found[1], wanted[1], within=slopes, least=1e-3, what=f"{kind}: gradient of ")
    except (AssertionError, BadInput) as failure:
        return str(failure)
    return ""


def kernel_errors(
    name: str,
    causal: bool,
    axes: Axes,
    length: int,
    *,
    dtype: str = "float32",
    heads: int = 2,
    kv_heads: int = 1,
    **options,
) -> dict[str, float]:
    """Of o and of the gradients of q, k and v: ‖by the kernel, interpreted, on shards of a sequence − by the
    engine in float32 on one device‖ / ‖the latter‖."""
    sizes = {"width": 32, "heads": heads, "kv_heads": kv_heads, "head_size": 16}
    mixer = build(name, Geometry(**sizes, length=length, causal=causal), rngs=nnx.Rngs(0), **options)
    layout, rng = Layout.plain(2, length), np.random.default_rng(0)
    shapes = {"q": heads, "k": kv_heads, "v": kv_heads}
    streams = {x: jnp.asarray(rng.standard_normal((2, length, n, 16)), dtype) for x, n in shapes.items()}

    def results(asked, mesh, streams):
        def total(streams):
            with executing(name, asked), on(mesh):
                o = mixer.core(streams, layout, None)[0].astype(jnp.float32)
            return jnp.sum(o * jnp.cos(jnp.arange(o.size, dtype=jnp.float32)).reshape(o.shape)), o

        (_, o), gradients = jit(jax.value_and_grad(total, has_aux=True))(streams)
        return {"o": o} | gradients

    wanted = results("xla", None, jax.tree.map(lambda x: x.astype(jnp.float32), streams))
    parts = (axes.data or 1) * axes.sequence
    found = results("interpret", make_mesh(axes, jax.devices()[:parts]), streams)
    norm = lambda x: float(np.linalg.norm(np.asarray(x, np.float32)))
    return {x: norm(np.asarray(found[x], np.float32) - wanted[x]) / norm(wanted[x]) for x in wanted}
