"""Which axis of an array lies along which axis of the mesh, said once and by meaning.

A parameter is made with the names of its axes, `nnx.Param(..., axes=("embed", "heads"))`; an activation is
named where it crosses a border, `constrain(x, "batch", "sequence", None)`. `RULES` says what the names
mean for a mesh. A name that is wrong or missing costs time or memory, never a result.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from transformer_jax.errors import BadInput, unknown
from transformer_jax.parallel.mesh import AXES, BATCH, current, cuts_parameters

Names = Sequence[str | None]


@dataclass(frozen=True, kw_only=True)
class Rules:
    """Name of an axis of an array -> the axes of the mesh that cut it.

    Attributes:
      batch, sequence: of activations.
      embed: the residual stream's channels, in parameters. heads: of attention, with their channels.
      hidden: of an MLP. vocabulary: of embeddings and logits.
      layers: the stack of layers, over which a scan runs: never cut.
    """

    batch: tuple[str, ...] = BATCH
    sequence: tuple[str, ...] = ("sequence",)
    embed: tuple[str, ...] = ("fsdp",)
    heads: tuple[str, ...] = ("tensor",)
    hidden: tuple[str, ...] = ("tensor",)
    vocabulary: tuple[str, ...] = ("tensor",)
    layers: tuple[str, ...] = ()

    def __post_init__(self):
        for field in fields(self):
            for axis in getattr(self, field.name):
                if axis not in AXES:
                    raise unknown(f"axis of the mesh in the rule of {field.name}", axis, AXES)

    def spec(self, names: Names, shape: Sequence[int], mesh: Mesh) -> PartitionSpec:
        """How an array of that shape is cut. An axis that does not divide is held whole.

        Raises BadInput where one axis of the mesh would cut two axes of the array, or a name has no rule.
        """
        return PartitionSpec(*self._cuts(names, shape, mesh))

    def parameter(self, names: Names | None, shape: Sequence[int], mesh: Mesh) -> PartitionSpec:
        """The same for a parameter, which fsdp always cuts: where no name says so, along the longest other
        axis that divides. Vectors are held whole: to gather one costs more than it saves."""
        names = names or (None,) * len(shape)
        cuts = self._cuts(names, shape, mesh)
        used = {axis for cut in cuts if cut for axis in cut}
        free = [i for i, cut in enumerate(cuts) if cut is None and names[i] != "layers"]
        parts = mesh.shape["fsdp"]
        if parts > 1 and "fsdp" not in used and sum(name != "layers" for name in names) > 1:
            free = [i for i in free if shape[i] % parts == 0]
            if free:
                cuts[max(free, key=lambda i: shape[i])] = ("fsdp",)
        return PartitionSpec(*cuts)

    def _cuts(self, names: Names, shape: Sequence[int], mesh: Mesh) -> list[tuple[str, ...] | None]:
        known = [field.name for field in fields(self)]
        cuts: list[tuple[str, ...] | None] = []
        taken: dict[str, str] = {}
        for name, size in zip(names, shape, strict=True):
            if name is not None and name not in known:
                raise unknown("name of an axis", name, known)
            wanted = () if name is None else getattr(self, name)
            for axis in wanted:
                if axis in taken:
                    raise BadInput(
                        f"The axis {axis!r} of the mesh would cut both {taken[axis]!r} and {name!r} of an "
                        f"array {tuple(shape)}: give one of them another rule, or no name."
                    )
                taken[axis] = name
            cut = tuple(axis for axis in wanted if mesh.shape[axis] > 1)
            divides = cut and size % math.prod(mesh.shape[axis] for axis in cut) == 0
            cuts.append(cut if divides else None)
        return cuts


RULES = Rules()
ASSEMBLED = Rules(embed=())
"""Of a matrix as a layer uses it."""


def named(names: str) -> dict[str, Any]:
    """The names of a parameter's axes, as a layer takes them: kernel_metadata=named("embed heads"); "-" is
    an axis without a name."""
    return {"axes": tuple(None if name == "-" else name for name in names.split())}


def constrain(x: jax.Array, *names: str | None) -> jax.Array:
    """x, cut as its axes are named on the mesh of the program that is being traced; axes beyond are whole."""
    mesh = current()
    if mesh is None or mesh.size == 1:
        return x
    names = (*names, *(None,) * (x.ndim - len(names)))
    return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, RULES.spec(names, x.shape, mesh)))


def assembled(x: jax.Array, names: Names) -> jax.Array:
    """A matrix as a layer uses it: its parts along fsdp put together, before any product.

    Left to itself the compiler may turn the product into a loop over the parts, to hide the gathering; on
    TPUs its thin products, summed in memory, take several times as long as what they hide (docs/pods.md).
    """
    mesh = current()
    if mesh is None or not cuts_parameters():
        return x
    # The first says nothing new of x, but of its gradient: there it comes last, and cuts it again.
    for spec in (RULES.parameter(names, x.shape, mesh), ASSEMBLED.spec(names, x.shape, mesh)):
        x = jax.lax.with_sharding_constraint(x, NamedSharding(mesh, spec))
    return x


def constrain_parameters(arrays: Mapping[str, jax.Array], axes: Mapping[str, Names]) -> dict[str, jax.Array]:
    """Parameters, or their gradients, each cut as its axes are named in `axes`."""
    mesh = current()
    if mesh is None or mesh.size == 1:
        return dict(arrays)
    cut = lambda name, x: NamedSharding(mesh, RULES.parameter(axes[name], x.shape, mesh))
    return {name: jax.lax.with_sharding_constraint(x, cut(name, x)) for name, x in arrays.items()}


def require_divides(what: str, size: int, axes: Sequence[str], mesh: Mesh, remedy: str = "") -> None:
    """Raises BadInput where `size` of `what` does not divide over these axes of the mesh."""
    parts = math.prod(mesh.shape[axis] for axis in axes)
    if size % parts:
        over = " × ".join(f"{axis} {mesh.shape[axis]}" for axis in axes if mesh.shape[axis] > 1)
        raise BadInput(
            f"{what} {size} does not divide over the mesh's {over}: choose a multiple of {parts}, or another "
            f"mesh{remedy}."
        )
