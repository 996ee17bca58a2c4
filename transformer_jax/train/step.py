"""One training step as a pure function, and the compiled program that runs several of them per call."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from transformer_jax.kernels.choice import recording
from transformer_jax.parallel.mesh import on
from transformer_jax.parallel.rules import constrain_parameters
from transformer_jax.train.config import Train
from transformer_jax.train.devices import placed, shardings
from transformer_jax.train.optimizer import learning_rate, update_rule
from transformer_jax.train.run import Run
from transformer_jax.train.state import Arrays, Skeleton, State, dismantle, initial

Batch = dict[str, Any]
Sums = dict[str, jax.Array]
"""Of one step, () each: "loss" (nats, or squared error) and "correct" summed over the targets with their
weights, "weight" the sum of the weights; "gradient_norm" before clipping and "learning_rate" in training."""
FREE: dict[str, Any] = {
    "learning_rate": 1.0,
    "weight_decay": 0.0,
    "evaluate_every": None,
    "save_every": None,
    "profile": None,
    "stop_at": None,
}
"""Fields of the recipe that no program depends on."""


def score(logits: jax.Array, batch: Batch) -> Sums:
    """Cross-entropy and hits as weighted sums: logits (..., outputs) against targets (...).

    Targets that are real numbers are compared with the only output: the squared error, and no hits.
    """
    targets, weights = batch["targets"], batch["weights"].astype(logits.dtype)
    if jnp.issubdtype(targets.dtype, jnp.floating):
        error = jnp.sum(jnp.square(logits[..., 0] - targets) * weights)
        return {"loss": error, "correct": jnp.zeros_like(error), "weight": jnp.sum(weights)}
    loss = optax.softmax_cross_entropy_with_integer_labels(logits, targets)
    # A hit is a target whose logit is the highest and alone so: equal logits are no knowledge. One
    # comparison and a sum, where an argmax over the vocabulary is slow.
    chosen = jnp.take_along_axis(logits, targets[..., None], axis=-1)
    correct = jnp.sum(logits >= chosen, axis=-1) == 1
    return {
        "loss": jnp.sum(loss * weights),
        "correct": jnp.sum(correct * weights),
        "weight": jnp.sum(weights),
    }


def layout_of(batch: Batch) -> Batch:
    """What a batch says of its padding and packing."""
    return {name: batch[name] for name in ("lengths", "segments") if name in batch}


def forward(skeleton: Skeleton, params: Arrays, rest: Arrays, batch: Batch) -> Sums:
    """The sums of a batch, without dropout; nothing moves."""
    logits, _ = skeleton.assemble(params, rest)(batch["inputs"], **layout_of(batch))
    return score(logits, batch)


def gradient(skeleton: Skeleton, state: State, batch: Batch, microbatches: int) -> tuple[Arrays, Sums, Any]:
    """The gradient of the mean loss over the batch, its sums, and what the model observed of it.

    Microbatches add up the gradients of their summed losses, their weights and their observations; one
    division at the end makes it the gradient of the whole batch, however the weights are spread.
    """
    key = jax.random.fold_in(state.key, state.step)

    def summed(params, batch, key):
        model = skeleton.assemble(params, state.rest)
        logits, observed = model.training_pass(batch["inputs"], **layout_of(batch), dropout=key)
        sums = score(logits, batch)
        return sums["loss"], (sums, observed)

    def one(batch, key):
        (_, (sums, observed)), slope = jax.value_and_grad(summed, has_aux=True)(state.params, batch, key)
        return constrain_parameters(slope, skeleton.axes), sums, observed

    if microbatches == 1:
        slope, sums, observed = one(batch, key)
    else:

        def body(total, numbered):
            number, part = numbered
            return jax.tree.map(jnp.add, total, one(part, jax.random.fold_in(key, number))), None

        # Rows are dealt out in turn: on several devices every microbatch then has rows on each of them.
        parts = jax.tree.map(lambda x: x.reshape(-1, microbatches, *x.shape[1:]).swapaxes(0, 1), batch)
        shapes = jax.eval_shape(one, jax.tree.map(lambda x: x[0], parts), key)
        nothing = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
        (slope, sums, observed), _ = jax.lax.scan(body, nothing, (jnp.arange(microbatches), parts))
    # A batch without any loss (all padding) has the gradient zero.
    weight = jnp.where(sums["weight"] > 0, sums["weight"], 1)
    return jax.tree.map(lambda g: g / weight.astype(g.dtype), slope), sums, observed


def renewed(skeleton: Skeleton, state: State, observed: Any) -> Arrays:
    """The buffers after the step of `state`, a function of seed, step and what was observed."""
    # 2³¹: a stream of its own beside that of dropout, for no step has this number.
    key = jax.random.fold_in(jax.random.fold_in(state.key, 2**31), state.step)
    model = skeleton.assemble(state.params, state.rest)
    model.renew(state.step, key, observed)
    return skeleton.rest_of(model)


def train_step(skeleton: Skeleton, train: Train, state: State, batch: Batch) -> tuple[State, Sums]:
    """One optimizer step on a batch."""
    slope, sums, observed = gradient(skeleton, state, batch, train.accumulate)
    rule = update_rule(train, state.weight_decay)
    updates, optimizer = rule.update(slope, state.optimizer, state.params)
    rate = learning_rate(train, state.step, state.peak)
    params = jax.tree.map(lambda p, u: p + (rate * u).astype(p.dtype), state.params, updates)
    sums = {**sums, "gradient_norm": optax.global_norm(slope), "learning_rate": rate}
    rest = renewed(skeleton, state, observed)
    return state._replace(params=params, rest=rest, optimizer=optimizer, step=state.step + 1), sums


@dataclass(frozen=True)
class Program:
    """The compiled functions of a model and a recipe.

    Attributes:
      rule: the update rule, for the first optimizer state.
      steps: (state, stack, count) -> (state, sums): `count` () int32 training steps on the first
        batches of a stack (k, B, ...); the state is donated; sums are (k,) float32 each.
      evaluate: (params, rest, batch) -> sums, without dropout.
    """

    rule: optax.GradientTransformation
    steps: Callable[[State, Batch, Any], tuple[State, Sums]]
    evaluate: Callable[[Arrays, Arrays, Batch], Sums]


def program(skeleton: Skeleton, train: Train, mesh: Mesh) -> Program:
    """The program of a model on a mesh; runs that differ only in `FREE` and the seed share it."""
    try:
        return _program(skeleton, replace(train, **FREE), mesh)
    except TypeError:  # a module that holds something unhashable cannot be shared
        return _program.__wrapped__(skeleton, train, mesh)


@functools.lru_cache(maxsize=8)
def _program(skeleton: Skeleton, train: Train, mesh: Mesh) -> Program:
    def steps(state: State, stack: Batch, count: jax.Array) -> tuple[State, Sums]:
        def batch(i):
            return jax.tree.map(lambda x: jax.lax.dynamic_index_in_dim(x, i, keepdims=False), stack)

        def body(i, carry):
            state, record = carry
            state, sums = train_step(skeleton, train, state, batch(i))
            record = {name: record[name].at[i].set(sums[name].astype(jnp.float32)) for name in record}
            return placed(skeleton, mesh, state), record

        most = stack["inputs"].shape[0]
        with on(mesh):
            names = jax.eval_shape(lambda s: train_step(skeleton, train, s, batch(0))[1], state)
            record = {name: jnp.zeros(most, jnp.float32) for name in names}
            # The number of trips is an argument: any number of steps per call runs the very same program,
            # so that no result depends on it.
            state, record = jax.lax.fori_loop(0, count, body, (state, record))
            return placed(skeleton, mesh, (state, record))

    def evaluate(params: Arrays, rest: Arrays, batch: Batch) -> Sums:
        with on(mesh):
            return placed(skeleton, mesh, forward(skeleton, params, rest, batch))

    return Program(update_rule(train), jax.jit(steps, donate_argnums=0), jax.jit(evaluate))


def executions(skeleton: Skeleton, mesh: Mesh, state: State, stack: Batch | None = None) -> dict[str, str]:
    """Which execution each mechanism of the program takes on this mesh for batches as in the stack
    (k, B, ...), by its name: a kernel, or "xla" and why. One that has no kernel is not there. Only shapes are
    read; without a stack nothing was computed."""
    if stack is None:
        return {}
    batch = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), stack)
    with on(mesh), recording() as heard:
        # A function of its own: JAX traces none twice.
        jax.eval_shape(lambda *args: forward(skeleton, *args), state.params, state.rest, batch)
    return {name: "; ".join(sorted(taken)) for name, taken in sorted(heard.items())}


def started(build: Callable[..., Any], run: Run, mesh: Mesh) -> State:
    """The state of a run before its first step. Each device makes its own part, so that a model need not fit
    on one.

    Args:
      build: (run, key) -> the untrained model.
    """
    try:
        make = _start(build, replace(run, seed=0, train=replace(run.train, **FREE)), mesh)
    except TypeError:  # a task that holds something unhashable
        make = _start.__wrapped__(build, run, mesh)
    return make(np.uint32(run.seed), np.float32(run.train.learning_rate), np.float32(run.train.weight_decay))


@functools.lru_cache(maxsize=8)
def _start(build: Callable[..., Any], run: Run, mesh: Mesh) -> Callable[[Any, Any, Any], State]:
    places = jax.tree.map(lambda leaf: leaf.sharding, outline(build, run, mesh)[1])
    return jax.jit(_make(build, run), out_shardings=places)


def outline(build: Callable[..., Any], run: Run, mesh: Mesh) -> tuple[Skeleton, State]:
    """The skeleton of a run's model, and its state as shapes, each with the place where it lies: enough to
    compile for a mesh whose devices are not here."""
    skeleton = dismantle(jax.eval_shape(lambda: build(run)))[0]
    state = jax.eval_shape(_make(build, run), np.uint32(0), np.float32(0), np.float32(0))
    lies = lambda leaf, place: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place)
    return skeleton, jax.tree.map(lies, state, shardings(skeleton, mesh, state))


def _make(build: Callable[..., Any], run: Run) -> Callable[[Any, Any, Any], State]:
    rule = update_rule(run.train)

    def make(seed: jax.Array, peak: jax.Array, weight_decay: jax.Array) -> State:
        _, params, rest = dismantle(build(run, jax.random.key(seed)))
        return initial(params, rest, rule, seed=seed, peak=peak, weight_decay=weight_decay)

    return make
