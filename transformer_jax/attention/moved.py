"""Bytes that a mechanism moves per generated token and keeps per token of training, from its shapes alone.

A decoding step on a small batch is as fast as memory lets it read what it needs; how long a sequence can be
trained is what fits of what the forward pass keeps for the backward one. Both are read from the traced
program, so that no number is written by hand; `bytes_are_stated` of the conformance suite holds them to the
compiled one.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.extend import core
from jax.interpreters.partial_eval import dce_jaxpr

from transformer_jax.attention.contract import Layout, Mixer

IN_PLACE = {"scatter": 2, "dynamic_update_slice": 1}
"""Primitives that change a part of their first operand; which operand is the part."""


@dataclass(frozen=True)
class Step:
    """Bytes of one decoding step: the state held; parameters, buffers, state and the token read; state and
    output written.

    State counts as read whole, which is the most that a full one asks for. An entry written into a cache
    in place counts as that entry.
    """

    state: int
    read: int
    written: int


def abstract(make: Callable[[], Mixer]) -> tuple[Any, Any]:
    """(graph, shapes of the values) of the mixer that `make()` makes, without drawing a parameter."""
    graph = None

    def values():
        nonlocal graph
        graph, values = nnx.split(make())
        return values

    values = jax.eval_shape(values)
    return graph, values


def decode_bytes(graph: Any, values: Any, batch: int = 1) -> Step:
    """A step of one token per sequence. Raises BadInput where decoding is undefined."""
    state = jax.eval_shape(lambda values: nnx.merge(graph, values).init_state(batch), values)
    jaxpr = jax.make_jaxpr(step(graph))(values, *token(graph, values, batch), state).jaxpr
    jaxpr, _ = dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars))  # what nothing comes of is not read
    read = sum(map(_bytes, jaxpr.invars))
    written = sum(_written(jaxpr, var) for var in jaxpr.outvars)
    return Step(sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state)), read, written)


def step(graph: Any) -> Callable:
    """(values, x (B, 1, D), positions (B, 1), state) → (y, state)."""
    return lambda values, x, positions, state: nnx.merge(graph, values)(x, Layout(positions), state)


def token(graph: Any, values: Any, batch: int) -> tuple[jax.ShapeDtypeStruct, jax.ShapeDtypeStruct]:
    """The shapes of x and positions of a step."""
    return inputs(graph, values, batch, 1), jax.ShapeDtypeStruct((batch, 1), jnp.int32)


def kept_bytes(graph: Any, values: Any, batch: int, length: int) -> int:
    """What the forward pass of the whole layer keeps for the backward one, besides the values themselves:
    an array that is kept twice counts once, and there is no rematerialization but the mechanism's own."""
    kept = jax.eval_shape(
        residuals(graph, values, batch, length), values, inputs(graph, values, batch, length)
    )
    return sum(leaf.size * leaf.dtype.itemsize for leaf in kept)


def residuals(graph: Any, values: Any, batch: int, length: int) -> Callable:
    """(values, x) → the arrays that its backward pass needs, each once, without the values."""

    def needed(values, x):
        layout = Layout.plain(*x.shape[:2])
        diff, rest = nnx.split_state(values, nnx.Param, ...)
        run = lambda diff, x: nnx.merge(graph, diff, rest)(x, layout)[0]
        return jax.tree.leaves(jax.vjp(run, diff, x)[1])

    jaxpr = jax.make_jaxpr(needed)(values, inputs(graph, values, batch, length)).jaxpr
    given = jaxpr.invars[: len(jax.tree.leaves(values))]
    made = [isinstance(var, core.Var) and var not in given for var in jaxpr.outvars]
    chosen = {id(var): at for at, var in enumerate(jaxpr.outvars) if made[at]}.values()

    def kept(values, x):
        every = needed(values, x)
        return [every[at] for at in chosen]

    return kept


def inputs(graph: Any, values: Any, batch: int, length: int) -> jax.ShapeDtypeStruct:
    """The shape of x (B, T, D)."""
    g = nnx.merge(graph, values).geometry
    return jax.ShapeDtypeStruct((batch, length, g.width), jnp.dtype(g.dtype))


def _written(jaxpr: Any, var: Any) -> int:
    """Bytes written to make `var` of what the program is given: nothing, a part in place, or all of it."""
    if not isinstance(var, core.Var) or var in jaxpr.invars:
        return 0
    eqn = next((eqn for eqn in jaxpr.eqns if var in eqn.outvars), None)
    if eqn is None:
        return 0
    if eqn.primitive.name in IN_PLACE:
        return _bytes(eqn.invars[IN_PLACE[eqn.primitive.name]]) + _written(jaxpr, eqn.invars[0])
    inner = eqn.params.get("jaxpr")
    if eqn.primitive.name in ("jit", "pjit") and inner is not None:
        result = inner.jaxpr.outvars[eqn.outvars.index(var)]
        return _written(inner.jaxpr, result)
    return _bytes(var)


def _bytes(var: Any) -> int:
    return math.prod(var.aval.shape) * var.aval.dtype.itemsize
