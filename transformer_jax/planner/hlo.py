"""Reads the text of a compiled program: computations, instructions, arrays, and how often a loop turns.

The text is what `compiled.as_text()` gives, of a TPU or a CPU. XLA's own summary (`cost_analysis()`) counts
the body of a loop once, so whatever a program costs is counted here instead.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property

HEADER = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{$")
NAMED = re.compile(r"^\s+(ROOT )?%?([\w.\-]+) = ")
ARRAY = re.compile(r"\b(pred|token|bf16|[csuf]\d+\w*)\[([\d,<=]*)\](\{[^}]*\})?")
CALLED = re.compile(r"\b(calls|to_apply|body|condition|true_computation|false_computation)=%?([\w.\-]+)")
BRANCHES = re.compile(r"\bbranch_computations=\{([^}]*)\}")
WORD = re.compile(r"%([\w.\-]+)")
TRIPS = re.compile(r'known_trip_count"?[:=]\{"?n"?:"?(\d+)')
SPACE = re.compile(r"S\((\d+)\)")


@dataclass(frozen=True)
class Array:
    """An array of the program.

    Attributes:
      kind: such as "bf16". shape: its sizes.
      space: where it lies: 0 the large memory (HBM), 1 the vector memory inside the core, others flags.
    """

    kind: str
    shape: tuple[int, ...]
    space: int = 0

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    @property
    def bytes(self) -> int:
        """As its elements are, without what tiling adds."""
        bits = re.search(r"\d+", self.kind)
        if self.kind == "token":
            return 0
        return -(-self.size * int(bits[0]) // 8) if bits else self.size  # pred: one byte


@dataclass(frozen=True)
class Instruction:
    """One line: name = form opcode(operands), attributes."""

    name: str
    form: str
    opcode: str
    inside: str
    attributes: str
    root: bool

    @cached_property
    def arrays(self) -> tuple[Array, ...]:
        """What it gives, a tuple's members one by one."""
        return arrays(self.form)

    @cached_property
    def operands(self) -> tuple[str, ...]:
        return tuple(WORD.findall(self.inside))

    @cached_property
    def called(self) -> Mapping[str, str]:
        """Role -> computation that it calls; branches are named branch0, branch1, …"""
        found = dict(CALLED.findall(self.attributes))
        if branches := BRANCHES.search(self.attributes):
            found |= {f"branch{i}": name for i, name in enumerate(re.findall(r"[\w.\-]+", branches[1]))}
        return found

    def attribute(self, pattern: str) -> str | None:
        found = re.search(pattern, self.attributes)
        return found[1] if found else None


@dataclass(frozen=True)
class Computation:
    name: str
    instructions: Mapping[str, Instruction]

    def __iter__(self) -> Iterator[Instruction]:
        return iter(self.instructions.values())

    @cached_property
    def root(self) -> Instruction:
        return next(i for i in self if i.root)

    @cached_property
    def parameters(self) -> tuple[Instruction, ...]:
        """In the order of the caller's operands."""
        found = [i for i in self if i.opcode == "parameter"]
        return tuple(sorted(found, key=lambda i: int(i.inside)))

    @cached_property
    def users(self) -> Mapping[str, list[Instruction]]:
        """Instruction -> those that read it."""
        found: dict[str, list[Instruction]] = {}
        for instruction in self:
            for operand in set(instruction.operands):
                found.setdefault(operand, []).append(instruction)
        return found


@dataclass(frozen=True)
class Module:
    computations: Mapping[str, Computation]
    entry: str


def parse(text: str) -> Module:
    """The program of a text. Raises ValueError where that is none."""
    computations: dict[str, Computation] = {}
    inside: dict[str, Instruction] = {}
    entry, name = "", ""
    for line in text.splitlines():
        if header := HEADER.match(line):
            name, inside = header[2], {}
            entry = name if header[1] else entry
        elif line == "}":
            computations[name] = Computation(name, inside)
        elif found := NAMED.match(line):
            instruction = _instruction(found[2], bool(found[1]), line[found.end() :])
            inside[instruction.name] = instruction
    if not entry:
        raise ValueError("This is no text of a compiled program: it has no ENTRY.")
    return Module(computations, entry)


def arrays(form: str) -> tuple[Array, ...]:
    found = []
    for kind, shape, layout in ARRAY.findall(form):
        space = SPACE.search(layout)
        sizes = tuple(int(size) for size in re.findall(r"\d+", shape))
        found.append(Array(kind, sizes, int(space[1]) if space else 0))
    return tuple(found)


def trips(module: Module, where: Computation, loop: Instruction) -> int | None:
    """How often a while loop turns; None where the program does not say, because data decide."""
    if known := TRIPS.search(loop.attributes):
        return int(known[1])
    condition = module.computations[loop.called["condition"]]
    test, arguments = condition.root, None
    if test.opcode == "fusion":  # the comparison is wrapped
        arguments = [condition.instructions.get(name) for name in test.operands]
        wrapped = module.computations[test.called["calls"]]
        names = [parameter.name for parameter in wrapped.parameters]
        test = wrapped.root
        outer = dict(zip(names, arguments, strict=False))
        sides = [outer.get(name, wrapped.instructions.get(name)) for name in test.operands]
    else:
        sides = [condition.instructions.get(name) for name in test.operands]
    if test.opcode != "compare" or len(sides) != 2 or None in sides:
        return None
    direction = test.attribute(r"direction=(\w+)")
    counter, limit = sides
    if direction in ("GT", "GE"):
        counter, limit = limit, counter
    if direction not in ("LT", "LE", "GT", "GE") or counter.opcode != "get-tuple-element":
        return None
    place = int(counter.attribute(r"index=(\d+)"))
    last = _constant(limit) if limit.opcode == "constant" else None
    if last is None and limit.opcode == "get-tuple-element":
        last = _initial(where, loop, int(limit.attribute(r"index=(\d+)")))
    if last is None:
        return None
    first = _initial(where, loop, place) or 0
    step = _step(module.computations[loop.called["body"]], place)
    return max(0, -(-(last + (direction in ("LE", "GE")) - first) // step))


def _instruction(name: str, root: bool, rest: str) -> Instruction:
    # A form has no space outside of a tuple's parentheses; layouts have parentheses of their own.
    end = _closed(rest, 0) if rest.startswith("(") else rest.index(" ")
    form, rest = rest[:end], rest[end:].lstrip()
    opening = rest.index("(")
    end = _closed(rest, opening)
    return Instruction(name, form, rest[:opening], rest[opening + 1 : end - 1], rest[end:], root)


def _closed(text: str, opening: int) -> int:
    """The place behind the parenthesis that closes the one at `opening`."""
    depth = 0
    for found in re.finditer(r"[()]", text[opening:]):
        depth += 1 if found[0] == "(" else -1
        if depth == 0:
            return opening + found.end()
    raise ValueError("A parenthesis of the program's text is never closed.")


def _constant(instruction: Instruction | None) -> int | None:
    """The value of a constant integer."""
    if instruction is None or instruction.opcode != "constant":
        return None
    return int(instruction.inside) if re.fullmatch(r"-?\d+", instruction.inside) else None


def _initial(where: Computation, loop: Instruction, place: int) -> int | None:
    """What a loop carries at `place` when it begins."""
    carried = where.instructions.get(loop.operands[0]) if loop.operands else None
    if carried is None or carried.opcode != "tuple" or place >= len(carried.operands):
        return None
    source = where.instructions.get(carried.operands[place])
    while source is not None and source.opcode in ("copy", "bitcast", "convert"):
        source = where.instructions.get(source.operands[0])
    return _constant(source)


def _step(body: Computation, place: int) -> int:
    """What a loop's body adds to its counter: 1 where that cannot be read."""
    if body.root.opcode == "tuple" and place < len(body.root.operands):
        added = body.instructions.get(body.root.operands[place])
        while added is not None and added.opcode in ("copy", "bitcast"):
            added = body.instructions.get(added.operands[0])
        if added is not None and added.opcode == "add":
            for operand in added.operands:
                if (step := _constant(body.instructions.get(operand))) is not None:
                    return max(1, step)
    return 1
