"""What training moves: parameters and optimizer as flat dicts of arrays, so that a dispatch costs little.

A module would be flattened in Python at each call; a dict by name is flattened by the compiled runtime,
and its names serve weight decay and checkpoints too.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx

Arrays = dict[str, jax.Array]


class State(NamedTuple):
    """Everything a step reads and returns.

    Attributes:
      params: learned arrays by dotted name, in float32. rest: buffers and whatever else the model holds.
      optimizer: Optax's state.
      step: () int32, optimizer steps done.
      key: the random key of the run; a step folds its number into it, so that resuming is exact.
      peak, weight_decay: () float32 each, of the recipe; here so that one program serves every value of a
        sweep.
    """

    params: Arrays
    rest: Arrays
    optimizer: Any
    step: jax.Array
    key: jax.Array
    peak: jax.Array
    weight_decay: jax.Array

    def parts(self) -> dict[str, Any]:
        """The parts of a checkpoint: the model alone is enough for generation; the recipe knows the decay."""
        return {
            "model": {"params": self.params, "rest": self.rest},
            "training": {name: getattr(self, name) for name in ("optimizer", "step", "key", "peak")},
        }

    def at(self, parts: dict[str, Any]) -> State:
        """This state where a checkpoint left it."""
        return self._replace(**parts["model"], **parts["training"])


@dataclass(frozen=True)
class Skeleton:
    """A model without its arrays; hashable, so that equal models share a compiled program."""

    graph: Any
    params: tuple[Any, tuple[str, ...]]
    rest: tuple[Any, tuple[str, ...]]
    names: tuple[tuple[str | None, ...], ...]
    """Of the axes of each parameter (`transformer_jax.parallel.rules`)."""

    @property
    def axes(self) -> dict[str, tuple[str | None, ...]]:
        return dict(zip(self.params[1], self.names, strict=True))

    def assemble(self, params: Arrays, rest: Arrays) -> nnx.Module:
        return nnx.merge(self.graph, _unnamed(self.params, params), _unnamed(self.rest, rest))

    def rest_of(self, model: nnx.Module) -> Arrays:
        """What `model` holds beside its parameters."""
        return _named(nnx.split(model, nnx.Param, ...)[2])[1]


def dismantle(model: nnx.Module) -> tuple[Skeleton, Arrays, Arrays]:
    """A model as its skeleton, its parameters and the rest."""
    graph, params, rest = nnx.split(model, nnx.Param, ...)
    learned = jax.tree.leaves(params, is_leaf=lambda x: isinstance(x, nnx.Variable))
    names = tuple(tuple(p.get_metadata().get("axes") or (None,) * p.ndim) for p in learned)
    (params_form, params), (rest_form, rest) = _named(params), _named(rest)
    return Skeleton(graph, params_form, rest_form, names), params, rest


def initial(
    params: Arrays,
    rest: Arrays,
    rule: optax.GradientTransformation,
    *,
    seed: Any,
    peak: Any,
    weight_decay: Any,
) -> State:
    """The state before the first step."""
    # 1: the model's own parameters are drawn from the seed itself.
    key = jax.random.fold_in(jax.random.key(seed), 1)
    numbers = (jnp.asarray(number, jnp.float32) for number in (peak, weight_decay))
    return State(params, rest, rule.init(params), jnp.zeros((), jnp.int32), key, *numbers)


def _named(tree: Any) -> tuple[tuple[Any, tuple[str, ...]], Arrays]:
    paths, structure = jax.tree_util.tree_flatten_with_path(tree)
    names = [
        jax.tree_util.keystr(path, simple=True, separator=".").removesuffix(".value") for path, _ in paths
    ]
    return (structure, tuple(names)), dict(zip(names, (leaf for _, leaf in paths), strict=True))


def _unnamed(form: tuple[Any, tuple[str, ...]], arrays: Arrays) -> Any:
    structure, names = form
    return jax.tree.unflatten(structure, [arrays[name] for name in names])
