"""What of a run lies where on its mesh: parameters and optimizer as the rules say, rows of a batch spread."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from transformer_jax.parallel.mesh import BATCH, make_mesh
from transformer_jax.parallel.rules import RULES, require_divides
from transformer_jax.train.run import Run
from transformer_jax.train.state import Skeleton


def everywhere(mesh: Mesh) -> NamedSharding:
    """Whole on each device."""
    return NamedSharding(mesh, PartitionSpec())


def rows(mesh: Mesh) -> NamedSharding:
    """Of a batch (B, ...). Tokens are small: cut along time is only what the model makes of them."""
    return NamedSharding(mesh, PartitionSpec(BATCH))


def stacked(mesh: Mesh) -> NamedSharding:
    """Of a stack of batches (k, B, ...)."""
    return NamedSharding(mesh, PartitionSpec(None, BATCH))


def shardings(skeleton: Skeleton, mesh: Mesh, tree: Any) -> Any:
    """Where each array of `tree` lies: one that has a parameter's name (as the moments of an optimizer do)
    as the rules say of that parameter, any other everywhere.

    Args:
      tree: a `State`, or a part of it; of arrays or jax.ShapeDtypeStruct.
    """
    axes = skeleton.axes

    def one(path, leaf) -> NamedSharding:
        names = axes.get(getattr(path[-1], "key", None)) if path else None
        if names is None or len(names) != leaf.ndim:
            return everywhere(mesh)
        return NamedSharding(mesh, RULES.parameter(names, leaf.shape, mesh))

    return jax.tree_util.tree_map_with_path(one, tree)


def placed(skeleton: Skeleton, mesh: Mesh, tree: Any) -> Any:
    """What a program returns, where `shardings` says."""
    if mesh.size == 1:
        return tree
    return jax.lax.with_sharding_constraint(tree, shardings(skeleton, mesh, tree))


def mesh_of(run: Run, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """The mesh that a run asks for, of `devices` (default: all there are). Raises BadInput where the run does
    not divide over it."""
    train, task, mesh = run.train, run.task, make_mesh(run.train.mesh, devices)
    batches = {"train.batch": train.batch, "train.evaluation_batch": train.evaluation_batch or train.batch}
    if train.accumulate > 1:
        batches["The microbatch, train.batch / train.accumulate ="] = train.batch // train.accumulate
    for name, size in batches.items():
        require_divides(name, size, BATCH, mesh)
    for each in (task, *task.evaluations().values()):
        require_divides(f"The length of {each.name},", each.length, ("sequence",), mesh)
    if mesh.shape["tensor"] > 1:
        model = run.model
        sizes = {"model.heads": model.heads, "model.kv_heads": model.kv_heads or model.heads}
        if model.mlp != "none":
            sizes["The hidden size of model.mlp,"] = model.hidden
        for name, size in sizes.items():
            require_divides(name, size, ("tensor",), mesh)
    return mesh
