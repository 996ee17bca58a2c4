"""What a compiled program does on one device, its loops counted with their turns.

The compiler writes `estimated_cycles` beside most instructions, but only behind those of matrix products
stands a model of its own; elsewhere it says COST_MODEL_TYPE_INVALID, and the number follows the blocks into
which it cuts an instruction, not the time (docs/pods.md has figures). What is no product counts by what it
touches.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property

from transformer_jax.planner.convolution import product_flops
from transformer_jax.planner.hlo import Computation, Instruction, Module, trips
from transformer_jax.planner.network import KINDS, Collective, collective

CYCLES = re.compile(r'"estimated_cycles":"(\d+)"')
NEVER = 2**63  # the compiler writes 2⁶⁴ − 1 where it has no estimate
UNFOUNDED = "COST_MODEL_TYPE_INVALID"
KERNELS = ("tpu_custom_call",)
"""Calls of kernels written by hand (Pallas), which the compiler's estimates do not see."""
# What moves nothing by itself: what is named, and what is only the other end of another.
FREE = {
    "parameter", "constant", "tuple", "get-tuple-element", "bitcast", "while", "conditional", "call",
    "after-all", "partition-id", "replica-id", "opt-barrier", "async-start", "async-update", "async-done",
    "copy-done", "slice-done", "dynamic-slice-done",
}  # fmt: skip
SLICES = ("dynamic-slice", "slice", "gather")
MOVES = {
    *SLICES,
    "dynamic-update-slice",
    "copy",
    "broadcast",
    "iota",
    "reshape",
    "concatenate",
    "custom-call",
}
"""What computes nothing of its elements."""


@dataclass(frozen=True)
class Work:
    """What an instruction does; the next one waits until all of it is done.

    Attributes:
      cycles: the compiler's estimate, where a model of its stands behind it: of products.
      bytes: of HBM. touched: bytes read and written wherever they lie, operations: element-wise ones, of what
        is no product.
    """

    cycles: int = 0
    bytes: int = 0
    touched: int = 0
    operations: int = 0


@dataclass
class Totals:
    """Of a program, or of a part of it.

    Attributes:
      work: of instructions that are waited for, each with the number of times that it runs; of everything
        but collectives and kernels.
      flops: of matrix products. bytes: read from and written to the large memory (HBM), copies that run
        beside other instructions included.
      collectives: each with the number of times that it runs.
      kernels: calls of kernels written by hand. kernel_flops: as their authors declare them.
        kernel_bytes: that they read and write.
      unknown: loops whose turns depend on data: they are counted once.
    """

    work: dict[Work, float] = field(default_factory=lambda: defaultdict(float))
    flops: float = 0
    bytes: float = 0
    collectives: dict[Collective, float] = field(default_factory=lambda: defaultdict(float))
    kernels: float = 0
    kernel_flops: float = 0
    kernel_bytes: float = 0
    unknown: float = 0

    @property
    def cycles(self) -> float:
        """The compiler's estimate, of products."""
        return sum(one.cycles * times for one, times in self.work.items())

    def add(self, other: Totals, times: float = 1) -> None:
        for name in ("flops", "bytes", "kernels", "kernel_flops", "kernel_bytes"):
            setattr(self, name, getattr(self, name) + times * getattr(other, name))
        self.unknown += other.unknown
        for one, count in other.collectives.items():
            self.collectives[one] += times * count
        for work, count in other.work.items():
            self.work[work] += times * count


def counted(module: Module, mesh: Mapping[str, int]) -> Totals:
    """The totals of a program.

    Args:
      mesh: the axes of the mesh that it was compiled for, in order, with their sizes.
    """
    return _Count(module, mesh).of(module.entry)


def large(one: Instruction | None) -> int:
    """Bytes of what an instruction gives that lie in the large memory, where no scalar does."""
    return sum(array.bytes for array in one.arrays if array.space == 0 and array.shape) if one else 0


def everywhere(one: Instruction | None) -> int:
    """Bytes of what an instruction gives, in any memory."""
    return sum(array.bytes for array in one.arrays if array.shape) if one else 0


Size = Callable[[Instruction | None], int]


class _Count:
    def __init__(self, module: Module, mesh: Mapping[str, int]):
        self.module, self.mesh = module, mesh
        self.known: dict[str, Totals] = {}

    def of(self, name: str) -> Totals:
        """The totals of a computation whose instructions are run one after another."""
        if name not in self.known:
            self.known[name] = found = Totals()
            where, seen = self.module.computations[name], set[str]()
            for instruction in where:
                self.add(found, where, instruction, seen)
        return self.known[name]

    def add(self, found: Totals, where: Computation, one: Instruction, seen: set[str]) -> None:
        if _is_kernel(one):
            self.call_kernel(found, one)
            found.kernel_bytes += self.traffic(where, one)
            return
        found.flops += product_flops(where, one)
        found.bytes += (bytes := self.traffic(where, one))
        if (work := self.work(where, one, bytes)) != Work():
            found.work[work] += 1
        self.communicate(found, where, one, seen, hidden=False)
        if one.opcode == "while":
            turns = trips(self.module, where, one)
            found.unknown += turns is None
            found.add(self.of(one.called["body"]), 1 if turns is None else turns)
        elif one.opcode == "fusion":
            self.add_fused(found, self.module.computations[one.called["calls"]], seen)
        elif one.opcode == "conditional":
            branches = [self.of(name) for role, name in one.called.items() if role != "to_apply"]
            found.add(max(branches, key=lambda branch: (branch.cycles, branch.flops, branch.bytes)))
        elif one.opcode in ("call", "async-start"):
            for name in one.called.values():
                found.add(self.of(name))

    def work(self, where: Computation, one: Instruction, bytes: int) -> Work:
        """Of an instruction that moves so many bytes of HBM."""
        if one.opcode in FREE or one.opcode.endswith("-start"):
            return Work()  # the copy runs beside what follows
        if one.opcode.removesuffix("-done") in KINDS:
            return Work()  # `communicate` counts it
        cycles = CYCLES.search(one.attributes)
        if cycles and int(cycles[1]) < NEVER and UNFOUNDED not in one.attributes:
            return Work(cycles=int(cycles[1]), bytes=bytes)
        touched = self.traffic(where, one, everywhere)
        return Work(bytes=bytes, touched=touched, operations=self.operations(where, one))

    def operations(self, where: Computation, one: Instruction) -> int:
        """Element-wise operations of an instruction and those fused into it; a reduction has one for each
        element that it reads."""
        if one.opcode == "fusion":
            fused = self.module.computations[one.called["calls"]]
            return sum(self.operations(fused, inner) for inner in fused)
        if one.opcode in FREE or one.opcode in MOVES:
            return 0
        read = [where.instructions[name] for name in one.operands if name in where.instructions]
        sizes = [
            array.size
            for each in ([one, *read] if one.opcode == "reduce" else [one])
            for array in each.arrays
        ]
        return max(sizes, default=0)

    def add_fused(self, found: Totals, fused: Computation, seen: set[str]) -> None:
        """Inside of a fusion products and collectives count; its cycles and bytes are its own."""
        for one in fused:
            if _is_kernel(one):
                self.call_kernel(found, one)
            found.flops += product_flops(fused, one)
            self.communicate(found, fused, one, seen, hidden=True)
            if one.opcode == "fusion":
                self.add_fused(found, self.module.computations[one.called["calls"]], seen)

    def call_kernel(self, found: Totals, one: Instruction) -> None:
        found.kernels += 1
        found.kernel_flops += int(one.attribute(r'"cost_estimate":\{[^}]*"flops":"?(\d+)') or 0)

    def communicate(
        self, found: Totals, where: Computation, one: Instruction, seen: set[str], *, hidden: bool
    ) -> None:
        """Counts a collective. One that runs beside several fusions stands in each of them, with one channel,
        and counts where it starts."""
        kind = one.opcode.removesuffix("-start")
        if kind not in KINDS:
            return
        channel = one.attribute(r"channel_id=(\d+)")
        if hidden and channel and (channel in seen or (channel in self.started and not _starts(where))):
            return
        seen.add(channel or one.name)
        hidden = hidden or one.opcode.endswith("-start")
        if "all-reduce-scatter" in where.name:
            kind, hidden = "reduce-scatter", False
        found.collectives[collective(kind, where, one, self.mesh, hidden=hidden)] += 1

    @cached_property
    def started(self) -> set[str | None]:
        """Channels of the collectives that a fusion starts and others go on with."""
        starting = [where for where in self.module.computations.values() if _starts(where)]
        return {
            one.attribute(r"channel_id=(\d+)") for where in starting for one in where if one.opcode in KINDS
        }

    # Bytes.

    def traffic(self, where: Computation, one: Instruction, size: Size = large) -> int:
        """Bytes that an instruction reads and writes, of arrays that `size` counts."""
        if one.opcode in FREE or one.opcode.removesuffix("-done").removesuffix("-start") in KINDS:
            return 0
        if one.opcode == "custom-call" and not _is_kernel(one):
            return 0
        if one.opcode in SLICES or one.opcode in ("slice-start", "dynamic-slice-start"):
            return 2 * size(one) // (2 if one.opcode.endswith("-start") else 1)
        operands = [where.instructions.get(name) for name in one.operands]
        if one.opcode == "dynamic-update-slice":
            return 2 * size(operands[1])
        if one.opcode == "copy-start":
            return sum(array.bytes for array in one.arrays[:2] if array.space == 0)
        if one.opcode != "fusion":
            return size(one) + sum(size(operand) for operand in operands if operand is not None)
        fused = self.module.computations[one.called["calls"]]
        pairs = zip(fused.parameters, operands, strict=True)
        return self.written(fused, size) + sum(
            min(size(outer), self.read(fused, inner)) for inner, outer in pairs if size(outer)
        )

    def read(self, fused: Computation, parameter: Instruction) -> int:
        """Bytes that a fusion reads of a parameter: the slices, where it and those inside of it take nothing
        else; where several take the same, it may be the whole more than once."""
        taken = 0
        for user in fused.users.get(parameter.name, []):
            if user.opcode in SLICES and user.operands[0] == parameter.name:
                taken += sum(array.bytes for array in user.arrays)
            elif user.opcode == "fusion":
                inside = self.module.computations[user.called["calls"]]
                pairs = zip(inside.parameters, user.operands, strict=True)
                taken += sum(self.read(inside, inner) for inner, name in pairs if name == parameter.name)
            elif not (user.opcode == "dynamic-update-slice" and user.operands[0] == parameter.name):
                return everywhere(parameter)
        return taken

    def written(self, fused: Computation, size: Size) -> int:
        """Bytes that a fusion writes: of an array that it updates in place, the update."""
        roots = [fused.root]
        if fused.root.opcode == "tuple":
            roots = [fused.instructions[name] for name in fused.root.operands]
        total = 0
        for root in roots:
            source = root
            while source.opcode in ("bitcast", "copy") and source.operands[0] in fused.instructions:
                source = fused.instructions[source.operands[0]]
            if source.opcode == "dynamic-update-slice":
                if size(root):
                    total += everywhere(fused.instructions[source.operands[1]])
            elif source.opcode == "fusion":
                inside = self.module.computations[source.called["calls"]]
                total += self.written(inside, everywhere) if size(root) else 0
            elif source.opcode != "parameter":
                total += size(root)
        return total


def _is_kernel(one: Instruction) -> bool:
    return one.opcode == "custom-call" and one.attribute(r'custom_call_target="(\w+)"') in KERNELS


def _starts(fused: Computation) -> bool:
    return fused.root.opcode == "custom-call" and "AsyncCollectiveStart" in fused.root.attributes
