"""One plan: an experiment's real training step, compiled for a slice that is not here, and what it says.

The step is that of `transformer_jax.train.step`, at the run's mesh, batch and dtypes, with its donated state;
nothing of it is allocated. `predict` has the model of its time.
"""

from __future__ import annotations

import dataclasses
import math
import re
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import jax
import numpy as np

from transformer_jax.errors import BadInput
from transformer_jax.kernels.choice import recording
from transformer_jax.launch.topology import GIB, Generation
from transformer_jax.measure.flops import trip_flops
from transformer_jax.planner import topologies
from transformer_jax.planner.counts import Totals, counted
from transformer_jax.planner.hlo import parse
from transformer_jax.planner.predict import predict
from transformer_jax.sweep.widths import flops
from transformer_jax.train.devices import mesh_of, stacked
from transformer_jax.train.feed import room
from transformer_jax.train.run import Run, build_model
from transformer_jax.train.step import outline, program

UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


@dataclass(frozen=True, kw_only=True)
class Memory:
    """Bytes of a device's HBM, as the compiler has them; outputs but those that take an argument's place."""

    arguments: int
    temporaries: int
    outputs: int = 0
    code: int = 0

    @property
    def total(self) -> int:
        return self.arguments + self.temporaries + self.outputs + self.code


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What the compiler says of a run on a slice.

    Attributes:
      variant, topology, chips, remat; mesh: the axes with their sizes.
      tokens: of a step, over all chips. memory: of a device. limit: what a program may take of it.
      fits: whether it does. executions: mechanism -> kernels, or "xla" with the reason (`kernels.choice`).
      counts: of a device and a step: "flops" (matrix products, recomputation included), "bytes" (of HBM),
        "cycles" (of products), "kernels", "unknown" loops; empty where it does not fit. The products of
        kernels are those that their authors declare, or else those of the engine's own execution.
      collectives: kind, axes, devices, times, "bytes" of the array, "sent" by a device in all, hidden.
      seconds: of a step, predicted; with its parts (`predict`). bounds: seconds that compute, memory and
        network take by themselves; the largest is the bound.
      formula: FLOPs of a step over all chips as its jaxpr says, recomputation included, by the engine's own
        execution where the program runs on kernels.
      model: the same without recomputation, as MFU counts them.
      mfu: model / (seconds · chips · FLOP/s of a chip).
      left_out: what the prediction does not know.
      compiling: seconds that making this plan took.
    """

    variant: str
    topology: str
    chips: int
    remat: str
    mesh: Mapping[str, int]
    tokens: int
    memory: Memory
    limit: float
    fits: bool
    executions: Mapping[str, list[str]] = field(default_factory=dict)
    counts: Mapping[str, float] = field(default_factory=dict)
    collectives: tuple[Mapping[str, Any], ...] = ()
    seconds: float | None = None
    parts: Mapping[str, float] = field(default_factory=dict)
    bounds: Mapping[str, float] = field(default_factory=dict)
    formula: float | None = None
    model: float | None = None
    mfu: float | None = None
    left_out: tuple[str, ...] = ()
    compiling: float = 0.0

    @property
    def bound(self) -> str | None:
        return max(self.bounds, key=lambda name: self.bounds[name]) if self.bounds else None

    @property
    def tokens_per_s(self) -> float | None:
        return self.tokens / self.seconds if self.seconds else None

    @property
    def missing(self) -> float:
        """Bytes by which it does not fit; negative: that are left."""
        return self.memory.total - self.limit

    def fields(self) -> dict[str, Any]:
        """As JSON values, from which it can be made again."""
        return asdict(self)

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Plan:
        """The plan of `fields`, read again."""
        lists = {name: tuple(values[name]) for name in ("collectives", "left_out")}
        return cls(**{**values, **lists, "memory": Memory(**values["memory"])})

    def as_json(self) -> dict[str, Any]:
        """As JSON values, with what follows from the fields."""
        more = {"bound": self.bound, "tokens_per_s": self.tokens_per_s, "needed": self.memory.total}
        return {**self.fields(), **more}


def plan(run: Run, label: str, topology: str) -> Plan:
    """The plan of a run. Raises BadInput where the run or a mechanism does not divide over the mesh so."""
    began, chip, devices = time.monotonic(), topologies.generation(topology), topologies.devices(topology)
    try:
        mesh = mesh_of(run, devices)
        with recording() as heard:
            traced, arguments = trace(run, mesh)
    except BadInput as error:
        raise BadInput(f"Variant {label!r} on {topology}: {error}") from None
    tokens = run.train.batch * run.task.length
    about: dict[str, Any] = {
        "variant": label,
        "topology": topology,
        "chips": len(devices),
        "remat": run.model.remat,
        "mesh": dict(mesh.shape),
        "tokens": tokens,
        "executions": {name: sorted(taken) for name, taken in heard.items()},
        "limit": chip.memory,
    }
    try:
        compiled = traced.lower().compile()
    except jax.errors.JaxRuntimeError as error:
        if (memory := too_large(str(error), arguments)) is None:
            raise
        return Plan(**about, memory=memory, fits=False, compiling=time.monotonic() - began)
    found = compiled.memory_analysis()
    memory = Memory(
        arguments=found.argument_size_in_bytes,
        temporaries=found.temp_size_in_bytes,
        outputs=found.output_size_in_bytes - found.alias_size_in_bytes,
        code=found.generated_code_size_in_bytes,
    )
    totals = counted(parse(compiled.as_text()), mesh.shape)
    if totals.kernels:  # whose products no text shows
        own = dataclasses.replace(run, model=dataclasses.replace(run.model, execution="xla"))
        traced, _ = trace(own, mesh)
    formula, model = _or_none(lambda: trip_flops(traced.jaxpr.jaxpr)), _or_none(lambda: flops(run))
    if totals.kernels and formula:
        totals.kernel_flops = max(totals.kernel_flops, formula / len(devices) - totals.flops)
    read = described(totals, chip, trips_known=1)
    model = model * tokens if model else None
    peak = (read["seconds"] or 0) * len(devices) * chip.flops
    return Plan(
        **about,
        **read,
        memory=memory,
        fits=memory.total <= chip.memory,
        formula=formula,
        model=model,
        mfu=model / peak if model and peak else None,
        compiling=time.monotonic() - began,
    )


def shapes(run: Run, mesh: jax.sharding.Mesh) -> tuple[Any, tuple[Any, ...]]:
    """The skeleton of a run's model, and the arguments of its training program: shapes that lie on a mesh."""
    skeleton, state = outline(build_model, run, mesh)
    batch = run.task.specification(run.train.batch)
    size = sum(int(np.prod(shape)) * np.dtype(kind).itemsize for shape, kind in batch.values())
    several = len({device.process_index for device in mesh.devices.flat}) > 1
    batches = run.train.steps_per_dispatch or (1 if several else room(size))
    lies = {"sharding": stacked(mesh)}
    stack = {
        name: jax.ShapeDtypeStruct((batches, *shape), kind, **lies) for name, (shape, kind) in batch.items()
    }
    return skeleton, (state, stack, jax.ShapeDtypeStruct((), np.int32))


def trace(run: Run, mesh: jax.sharding.Mesh) -> tuple[jax.stages.Traced, tuple[Any, ...]]:
    """The training program of a run on a mesh, and its arguments."""
    skeleton, arguments = shapes(run, mesh)
    steps: Any = program(skeleton, run.train, mesh).steps
    return steps.trace(*arguments), arguments


def described(totals: Totals, chip: Generation, *, trips_known: int) -> dict[str, Any]:
    """Fields of a plan, of what was counted.

    trips_known: loops whose turns need not be known: the one over the steps of a call.
    """
    seconds, parts, bounds = predict(totals, chip)
    flops = totals.flops + totals.kernel_flops
    left_out = ["latency of collectives", "what Python and the input pipeline take"]
    if totals.kernels:
        left_out.append("how far kernels stay below the chip's peak")
    if totals.unknown > trips_known:
        left_out.append(f"turns of {totals.unknown - trips_known:.0f} loops that data decide, counted once")
    return {
        "counts": {
            "flops": flops,
            "bytes": totals.bytes + totals.kernel_bytes,
            "cycles": totals.cycles,
            "kernels": totals.kernels,
            "unknown": totals.unknown,
        },
        "collectives": tuple(
            {
                "kind": one.kind,
                "axes": "×".join(one.axes),
                "devices": one.devices,
                "times": times,
                "bytes": one.bytes,
                "sent": one.sent * times,
                "hidden": one.hidden,
            }
            for one, times in sorted(totals.collectives.items(), key=lambda item: -item[0].sent * item[1])
        ),
        "seconds": seconds or None,  # a CPU's compiler estimates nothing
        "parts": parts,
        "bounds": bounds,
        "left_out": tuple(left_out),
    }


def too_large(message: str, arguments: Any) -> Memory | None:
    """The memory of a program that the compiler refused for its size; None where it had another reason."""
    if "RESOURCE_EXHAUSTED" not in message or "hbm" not in message.lower():
        return None
    held = sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape) if leaf.sharding else leaf.shape)
        * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(arguments)
    )
    if found := re.search(r"temporaries \(([\d.]+)([KMGT]?)\)", message):
        return Memory(arguments=held, temporaries=_bytes(found[1], found[2]))
    if found := re.search(r"(?:Used|usage >=|required[^(]*\(?) ?([\d.]+)([KMGT]?)", message):
        total = _bytes(found[1], found[2])
        return Memory(arguments=min(held, total), temporaries=max(0, total - held))
    return None


def gib(size: float) -> str:
    return f"{size / GIB:.2f} GiB"


def _bytes(number: str, unit: str) -> int:
    return int(float(number) * UNITS[unit])


def _or_none(count: Any) -> float | None:
    try:
        return float(count())
    except BadInput:
        return None
