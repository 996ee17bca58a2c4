"""Collectives of a compiled program: over which axis of the mesh, how many bytes, how long they take."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from transformer_jax.planner.hlo import Computation, Instruction

KINDS = (
    "all-gather",
    "all-reduce",
    "reduce-scatter",
    "all-to-all",
    "ragged-all-to-all",
    "collective-permute",
)
EVERYWHERE = "?"


@dataclass(frozen=True)
class Collective:
    """What devices tell each other at one place of the program.

    Attributes:
      kind: one of KINDS. axes: of the mesh, along which; "?" where the groups follow none.
      devices: in one group. bytes: of the whole array on a device, before or after, whichever is more.
      hidden: whether the program computes while it runs.
    """

    kind: str
    axes: tuple[str, ...]
    devices: int
    bytes: int
    hidden: bool

    @property
    def sent(self) -> float:
        """Bytes that a device sends: with a ring of n devices (n − 1)/n of the array for a gather, a scatter
        and an exchange, twice that for a reduction, the whole for a permutation."""
        share = (self.devices - 1) / self.devices
        if self.kind == "collective-permute":
            return float(self.bytes)
        return (2 if self.kind == "all-reduce" else 1) * share * self.bytes


def collective(
    kind: str, where: Computation, one: Instruction, mesh: Mapping[str, int], *, hidden: bool
) -> Collective:
    """The collective of an instruction."""
    mine = sum(array.bytes for array in one.arrays if array.kind != "token")
    if one.opcode.endswith("-start") and one.form.startswith("("):
        mine = max((array.bytes for array in one.arrays), default=0)  # it gives its operand as well
    read = [where.instructions.get(name) for name in one.operands]
    theirs = sum(array.bytes for operand in read if operand is not None for array in operand.arrays)
    size = math.prod(mesh.values())
    groups = _pairs(one) if kind == "collective-permute" else _groups(one.attributes, size)
    axes = _axes(groups, mesh)
    devices = math.prod(mesh[axis] for axis in axes) if axes != (EVERYWHERE,) else len(groups[0])
    return Collective(kind, axes, devices, max(mine, theirs), hidden)


def _pairs(one: Instruction) -> list[list[int]]:
    text = one.attribute(r"source_target_pairs=\{(.*?\})\}") or ""
    found = [[int(a), int(b)] for a, b in re.findall(r"\{(\d+),(\d+)\}", text)]
    return [pair for pair in found if pair[0] != pair[1]] or [[0]]


def _groups(attributes: str, size: int) -> list[list[int]]:
    """Who takes part together, as numbers of the mesh's devices in order.

    The compiler writes lists {{0,1},{2,3}}, a reshaped range [2,2]<=[4] with the order of its axes, or
    mesh['a'=2,'b'=2] {'a'}, where 'a':(1)2 is a part of an axis.
    """
    if found := re.search(
        r"replica_groups=mesh\[([^\]]*)\](?:, *device_ids=\((.*?)\))? \{([^}]*)\}", attributes
    ):
        sizes = {name: int(n) for name, n in re.findall(r"'([^']+)'=(\d+)", found[1])}
        ids = _range(found[2]) if found[2] else np.arange(math.prod(sizes.values()))
        return _of_mesh(ids.reshape(list(sizes.values())), sizes, found[3])
    if found := re.search(r"replica_groups=\[([\d,]+)\]<=(\[[\d,]+\](?:T\([\d,]+\))?)", attributes):
        return _range(found[2]).reshape([int(n) for n in found[1].split(",")]).tolist()
    if found := re.search(r"replica_groups=\{(\{[\d,]*\}(?:,\{[\d,]*\})*)\}", attributes):
        return [[int(n) for n in group.split(",") if n] for group in re.findall(r"\{([\d,]*)\}", found[1])]
    return [list(range(size))]


def _range(text: str) -> np.ndarray:
    """[2,4]T(1,0): the numbers from 0 on in that shape, its axes then in that order, flat."""
    found = re.search(r"\[([\d,]+)\](?:T\(([\d,]+)\)?)?", text)
    sizes = [int(n) for n in found[1].split(",")]
    order = [int(n) for n in found[2].split(",")] if found[2] else range(len(sizes))
    return np.arange(math.prod(sizes)).reshape(sizes).transpose(order).reshape(-1)


def _of_mesh(ids: np.ndarray, sizes: Mapping[str, int], text: str) -> list[list[int]]:
    shape, along, place = [], [], 0
    parts = {name: (int(a), int(b)) for name, a, b in re.findall(r"'([^']+)':\((\d+)\)(\d+)", text)}
    named = set(re.findall(r"'([^']+)'", text))
    for name, size in sizes.items():
        before, own = parts.get(name, (1, size))
        shape += [before, own, size // before // own]
        if name in named:
            along.append(place + 1)
        place += 3
    ids = ids.reshape(shape)
    others = [axis for axis in range(len(shape)) if axis not in along]
    count = math.prod(shape[axis] for axis in along)
    return ids.transpose(others + along).reshape(-1, max(1, count)).tolist()


def _axes(groups: list[list[int]], mesh: Mapping[str, int]) -> tuple[str, ...]:
    """The axes of the mesh along which the members of a group differ."""
    places = np.stack(np.unravel_index(np.arange(math.prod(mesh.values())), tuple(mesh.values())))
    moved: set[str] = set()
    for group in groups:
        if max(group, default=0) >= places.shape[1]:
            return (EVERYWHERE,)
        mine = places[:, group]
        moved |= {name for name, row in zip(mesh, mine, strict=True) if (row != row[0]).any()}
    return tuple(name for name in mesh if name in moved) or (EVERYWHERE,)
