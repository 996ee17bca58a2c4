"""What tests/train/test_mesh.py runs in a process with eight devices."""

from __future__ import annotations

import contextlib
import io
import re
import shutil
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path

import jax
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from tests.train.toy import toy_model, toy_run
from transformer_jax import cli
from transformer_jax.attention.engines.softmax import attend
from transformer_jax.attention.engines.softmax_plan import band
from transformer_jax.data.tasks.copy import Copy
from transformer_jax.errors import BadInput
from transformer_jax.model.config import Transformer
from transformer_jax.parallel.mesh import BATCH, Axes, make_mesh, on
from transformer_jax.train import loop
from transformer_jax.train.config import Train
from transformer_jax.train.devices import mesh_of, rows, stacked
from transformer_jax.train.metrics import read_metrics
from transformer_jax.train.progress import Silent
from transformer_jax.train.run import Run, build_model
from transformer_jax.train.state import dismantle
from transformer_jax.train.step import _start, gradient, program, started

STEPS = 4


def run_of(axes: Axes, train: dict | None = None, **model) -> Run:
    """Two layers of width 32 with four heads on sequences of 16, batches of 16."""
    model = {"layers": 2, "width": 32, "heads": 4, "positions": "learned"} | model
    settings = {"steps": STEPS, "batch": 16, "learning_rate": 1e-2, "warmup": 1} | (train or {})
    task = Copy(length=16, symbols=6, validation_examples=16, test_examples=16)
    return Run(task=task, model=Transformer(**model), train=Train(**settings, mesh=axes))


def begun(run: Run):
    """Its mesh (of as many devices as it asks for), program, first state and batches on their devices."""
    axes = run.train.mesh
    count = (axes.data or 1) * axes.fsdp * axes.tensor * axes.sequence
    mesh = make_mesh(axes, jax.devices()[:count])
    skeleton = dismantle(jax.eval_shape(lambda: build_model(run)))[0]
    batches = [run.task.examples(0, np.arange(16 * i, 16 * i + 16)) for i in range(STEPS)]
    stack = jax.device_put(jax.tree.map(lambda *x: np.stack(x), *batches), stacked(mesh))
    return mesh, skeleton, program(skeleton, run.train, mesh), started(build_model, run, mesh), stack


def trained(run: Run, *, slopes: bool = False) -> dict[str, dict[str, np.ndarray]]:
    """The sums of each step, the parameters after them and, with `slopes`, the first gradient. Asserts that
    every array of the state comes out of a step where it went in."""
    mesh, skeleton, compiled, state, stack = begun(run)
    found = {}
    if slopes:

        @jax.jit
        def first(state, batch):
            with on(mesh):
                return gradient(skeleton, state, batch, run.train.accumulate)[0]

        batch = jax.device_put(jax.tree.map(lambda x: np.asarray(x[0]), stack), rows(mesh))
        found["gradient"] = first(state, batch)
    before = jax.tree.map(lambda x: x.sharding, state)
    state, sums = made(compiled.steps, state, stack, np.int32(STEPS))(state, stack, np.int32(STEPS))
    for (path, x), place in zip(jax.tree.leaves_with_path(state), jax.tree.leaves(before), strict=True):
        assert place.is_equivalent_to(x.sharding, x.ndim), f"{path} moved from {place} to {x.sharding}"
    return jax.device_get(found | {"sums": sums, "params": state.params})


@dataclass(frozen=True)
class Inspected:
    """What a mesh makes of a run.

    Attributes:
      total: bytes of parameters and optimizer. held: of them on one device. given: of a step's arguments.
      matrix: bytes of the largest parameter. largest: of the largest array in the program that makes the
        first state.
      exchanged: how often (kind of collective, shape) stands in the program of a step, axes of one layer left
        out. made: the shapes of everything that a step makes.
    """

    total: int
    held: int
    given: int
    matrix: int
    largest: int
    exchanged: Counter[tuple[str, str]]
    made: frozenset[str]


def inspected(axes: Axes) -> Inspected:
    run = run_of(axes, width=64)
    mesh, _, compiled, state, stack = begun(run)
    first = mesh.devices.flat[0]
    arrays = jax.tree.leaves((state.params, state.optimizer))
    parts = [shard for x in arrays for shard in x.addressable_shards if shard.device == first]
    start = made(_start(build_model, run, mesh), np.uint32(0), np.float32(0), np.float32(0)).as_text()
    sizes = [np.prod([int(n) for n in dims.split(",")]) for dims in re.findall(r"[fu]32\[([\d,]+)\]", start)]
    step = made(compiled.steps, state, stack, np.int32(1))
    kinds = "all-gather|all-reduce|reduce-scatter|all-to-all|collective-permute"
    exchanged: Counter = Counter()
    for results, kind in re.findall(rf"= (.*?) ({kinds})(?:-start)?\(", step.as_text()):
        exchanged.update((kind, shape) for shape in re.findall(r"f32\[(?:1,)?([\d,]*)\]", results))
    return Inspected(
        total=sum(x.nbytes for x in arrays),
        matrix=max(x.nbytes for x in arrays),
        held=sum(part.data.nbytes for part in parts),
        given=step.memory_analysis().argument_size_in_bytes,
        largest=4 * int(max(sizes)),
        exchanged=exchanged,
        made=frozenset(re.findall(r"f32\[([\d,]+)\]", step.as_text())),
    )


def exchanged_in_parts(axes: Axes) -> list[str]:
    """The collectives of attention, forward and backward, that is computed for some sequences and heads after
    others."""
    mesh = make_mesh(axes)
    place = NamedSharding(mesh, PartitionSpec(BATCH, None, "tensor"))
    x = jax.ShapeDtypeStruct((32, 512, 4, 8), np.float32, sharding=place)

    def loss(q, k, v):
        o, _ = attend(q, k, v, band(512, 512, after=0), lambda qk, query, key, shared: qk)
        return (o**2).sum()

    def slopes(q, k, v):
        with on(mesh):
            return jax.grad(loss, argnums=(0, 1, 2))(q, k, v)

    text = made(jax.jit(slopes), x, x, x).as_text()
    assert " while(" in text, "nothing is computed in parts"
    return re.findall(r" (all-gather|all-reduce|all-to-all|collective-permute)(?:-start)?\(", text)


def made(f, *arguments):
    """The compiled program. How it is cut is settled before the machine code, which is left unoptimized."""
    return f.lower(*arguments).compile(compiler_options={"xla_backend_optimization_level": 0})


def continued(out: Path, first: Axes, then: Axes, *, toy: bool) -> tuple[list, list]:
    """The training losses of a run on one mesh, and of the same run that was cut off half way and went on on
    another."""
    train = {"steps": 6, "save_every": 3, "log_every": 1, "evaluate_every": 6}
    losses = []
    for number, axes in enumerate((first, then)):
        run = toy_run(**train, mesh=axes) if toy else run_of(axes, train)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(loop, "build_model", toy_model if toy else build_model)
            loop.train(run, out, data=out.parent / "data", progress=Silent())
        losses.append([line["loss"] for line in read_metrics(out) if line["split"] == "train"])
        if number == 0:
            (out / loop.RESULT).unlink()
            shutil.rmtree(out / "checkpoints" / "6")
    return losses[0], losses[1]


def refusal(axes: Axes, train: dict, model: dict) -> str:
    """The sentence with which a run is refused."""
    try:
        mesh_of(run_of(axes, train, **model))
    except BadInput as error:
        return str(error)
    return "accepted"


def of_length(axes: Axes, length: int) -> str:
    run = run_of(axes)
    try:
        mesh_of(replace(run, task=replace(run.task, length=length)))
    except BadInput as error:
        return str(error)
    return "accepted"


def commanded(*words: str) -> tuple[int, str]:
    """The exit code of a command line, and what it said on stderr."""
    with contextlib.redirect_stderr(io.StringIO()) as said:
        code = cli.main(list(words))
    return code, said.getvalue()
