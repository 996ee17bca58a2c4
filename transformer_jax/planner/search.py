"""Looks for what fits: meshes and rematerialization on one slice, or the smallest slice."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from transformer_jax.errors import BadInput
from transformer_jax.parallel.mesh import Axes
from transformer_jax.planner import topologies
from transformer_jax.planner.kept import kept
from transformer_jax.planner.plan import Plan, plan
from transformer_jax.train.run import Run

REMAT = ("none", "projections", "dots", "full")
"""From the fastest, which holds most, to the slowest, which holds least."""

Say = Callable[[str], Any]


class Asked(NamedTuple):
    """A run under its label on a slice."""

    run: Run
    label: str
    topology: str

    def planned(self) -> Plan:
        return kept(self.run, self.label, self.topology, lambda: plan(*self))

    def on(self, topology: str) -> Asked:
        return self._replace(topology=topology)

    def meshed(self, axes: Axes) -> Asked:
        return self._replace(run=_with(self.run, train={"mesh": axes}))

    def remat(self, policy: str) -> Asked:
        return self._replace(run=_with(self.run, model={"remat": policy}))


def meshes(chips: int, run: Run) -> Iterator[Axes]:
    """Meshes worth a try, the simplest first: parameters cut over all chips or over some, heads over few, and
    the sequence where the batch is too small for all chips."""
    powers = [2**n for n in range(chips.bit_length()) if chips % 2**n == 0]
    batch, length = run.train.batch // run.train.accumulate, run.task.length
    for sequence in [s for s in powers if length % s == 0 and (s == 1 or s >= chips // batch)][:3]:
        for tensor in [
            t for t in powers if t <= 8 and run.model.heads % t == 0 and chips % (t * sequence) == 0
        ]:
            rest = chips // (sequence * tensor)
            if batch % rest:
                continue
            for fsdp in dict.fromkeys((rest, max(1, rest // 4), 1)):
                yield Axes(data=rest // fsdp, fsdp=fsdp, tensor=tensor, sequence=sequence)


def search(asked: Asked, say: Say) -> Plan:
    """The fastest plan that fits of all meshes, each with the first policy of REMAT with which it fits.

    Raises BadInput where none fits, or none can be.
    """
    found: list[Plan] = []
    refused = ""
    for axes in meshes(topologies.chips(asked.topology), asked.run):
        try:
            found.append(least_remat(asked.meshed(axes), say))
        except BadInput as error:
            refused = refused or str(error)
    fits = [plan for plan in found if plan.fits]
    if not found:
        raise BadInput(refused or f"Variant {asked.label!r}: no mesh of {asked.topology} divides its batch.")
    if not fits:
        raise too_large(min(found, key=lambda plan: plan.missing), "with any mesh tried; take a larger slice")
    return min(fits, key=lambda plan: plan.seconds)


def least_remat(asked: Asked, say: Say) -> Plan:
    """With the first policy with which it fits, or else the last."""
    for policy in REMAT:
        made = asked.remat(policy).planned()
        say(sentence(made))
        if made.fits:
            break
    return made


def smallest(asked: Asked, say: Say) -> Plan:
    """The plan on the smallest slice of the generation on which the run fits as it is, its parameters cut
    over all chips where the mesh does not say otherwise. Raises BadInput where it fits on none."""
    last, refused = None, ""
    for topology in topologies.ladder(asked.topology):
        try:
            last = spread(asked.on(topology)).planned()
        except BadInput as error:
            refused = str(error)
            continue
        say(sentence(last))
        if last.fits:
            return last
    if last is None:
        raise BadInput(refused)
    raise too_large(
        last, "and no larger slice helps; rematerialize (--model.remat full), or cut the sequence"
    )


def remedy(asked: Asked, say: Say) -> str:
    """What would make a run fit that does not: the first that does of parameters cut over all chips and
    layers recomputed whole, on this slice and then on larger ones."""
    chips = topologies.chips(asked.topology)
    larger = [asked.topology]
    larger += [name for name in topologies.ladder(asked.topology) if topologies.chips(name) > chips]
    for topology in larger:
        for policy in dict.fromkeys((asked.run.model.remat, "full")):
            for cut in (asked, spread(asked.on(topology), every=True)):
                other = cut.on(topology).remat(policy)
                if other == asked:
                    continue
                try:
                    made = other.planned()
                except BadInput:
                    continue
                say(sentence(made))
                if made.fits:
                    return (
                        f"what fits is {topology} with {mesh_text(made)} and --model.remat {policy} "
                        f"({made.memory.total / 2**30:.2f} GiB)"
                    )
    return "nothing tried on larger slices fits either"


def spread(asked: Asked, *, every: bool = False) -> Asked:
    """With the parameters cut over all chips, where the mesh leaves that open (`every`: in any case)."""
    axes = asked.run.train.mesh
    if not every and (axes.data is not None or axes.fsdp > 1):
        return asked
    chips = topologies.chips(asked.topology)
    rest = chips // (axes.tensor * axes.sequence)
    return asked.meshed(dataclasses.replace(axes, data=1, fsdp=max(1, rest)))


def too_large(made: Plan, remedy: str) -> BadInput:
    """The error for a plan that does not fit."""
    return BadInput(
        f"Variant {made.variant!r} does not fit on {made.topology} with {mesh_text(made)}: a chip would need "
        f"{made.memory.total / 2**30:.2f} GiB, {made.missing / 2**30:.2f} more than it has, {remedy}."
    )


def mesh_text(made: Plan) -> str:
    """The mesh as --mesh takes it."""
    return ",".join(f"{name}={size}" for name, size in made.mesh.items() if size > 1) or "data=1"


def sentence(made: Plan) -> str:
    """A line of progress."""
    outcome = f"{made.seconds * 1e3:,.1f} ms" if made.fits else "does not fit"
    return (
        f"{made.variant} on {made.topology}, {mesh_text(made)}, remat {made.remat}: "
        f"{made.memory.total / 2**30:.2f} GiB, {outcome} (compiled in {made.compiling:.0f} s)"
    )


def _with(run: Run, **parts: dict[str, Any]) -> Run:
    changed = {name: dataclasses.replace(getattr(run, name), **values) for name, values in parts.items()}
    return dataclasses.replace(run, **changed)
