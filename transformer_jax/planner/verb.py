"""`plan`: what the TPU's compiler says of an experiment, as a table or JSON lines."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable
from functools import partial

from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from transformer_jax import experiment
from transformer_jax.errors import BadInput, unknown
from transformer_jax.parallel.mesh import AXES
from transformer_jax.planner import topologies
from transformer_jax.planner.plan import GIB, Plan
from transformer_jax.planner.search import Asked, mesh_text, remedy, search, sentence, smallest, too_large
from transformer_jax.sweep.cells import first_runs
from transformer_jax.sweep.widths import settled

MODEL = (
    "Uncalibrated: step = max(compute + kernels, hidden) + exposed. Compute is the compiler's cycles at the "
    "chip's clock, the last two what collectives send over two links of a chip. MFU = FLOPs of the loss "
    "and its gradient, nothing recomputed / (step · chips · peak)."
)


def plan_experiment(options: argparse.Namespace, changes: dict[str, str]) -> int:
    """Plans each variant on each slice. Raises BadInput where one does not fit, or cannot be cut so."""
    say = lambda line: print(line, file=sys.stderr, flush=True)
    slices = [name for name in options.topology.split(",") if name]
    for topology in slices:
        topologies.generation(topology)
    if options.search and options.smallest:
        raise BadInput("--search looks on one slice, --smallest for a slice: give one of them.")
    runs = asked_runs(options, changes)
    plans, problems = [], []
    look = search if options.search else smallest if options.smallest else None
    for topology in slices:
        for label, run in runs.items():
            asked = Asked(run, label, topology)
            try:
                plans.append(look(asked, say) if look else asked.planned())
                say(sentence(plans[-1]))
            except BadInput as error:
                problems.append(str(error))
    if options.json:
        for made in plans:
            print(json.dumps(made.as_json()))
    elif plans:
        Console().print(render(plans))
    for made in plans:
        if not made.fits and not problems:
            asked = Asked(runs[made.variant], made.variant, made.topology)
            problems.append(str(too_large(made, remedy(asked, say))))
    if problems:
        more = f" ({len(problems) - 1} more like it.)" if len(problems) > 1 else ""
        raise BadInput(problems[0] + more)
    return 0


def asked_runs(options: argparse.Namespace, changes: dict[str, str]) -> dict[str, object]:
    """label -> its first run, on the mesh that is asked for."""
    written, _ = experiment.load(experiment.find(options.experiment))
    if not isinstance(written, experiment.Experiment):
        raise BadInput(f"{options.experiment} trains nothing, so there is no training step to plan.")
    if "variant" in changes:
        changes["variants"] = changes.pop("variant")
    return first_runs(settled(written.at(options.scale, changes | mesh_changes(options.mesh)))[0])


def mesh_changes(text: str | None) -> dict[str, str]:
    """data=4,fsdp=4 as settings. Raises BadInput on anything else."""
    found = {}
    for part in filter(None, (text or "").split(",")):
        name, _, size = part.partition("=")
        if name not in AXES:
            raise unknown("axis of --mesh", name, AXES)
        if not size.isdigit():
            raise BadInput(f"--mesh {text}: give each axis a number of chips, such as data=4,fsdp=4.")
        found[f"train.mesh.{name}"] = size
    return found


def render(plans: Iterable[Plan]) -> Group:
    """The plans as a table, what they send, and how to read them."""
    plans = list(plans)
    table = Table(title="Planned training steps, per chip")
    columns = ("variant", "slice", "mesh", "remat", "fits", "arguments", "temporaries", "outputs")
    for name in (*columns, "TFLOP", "GB read, written", "step, ms", "bound", "tokens/s", "MFU"):
        table.add_column(
            name, justify="left" if name in ("variant", "slice", "mesh", "remat", "bound") else "right"
        )
    for made in plans:
        memory, read = made.memory, made.seconds is not None
        size = lambda value: f"{value / GIB:.2f}"
        table.add_row(
            made.variant,
            made.topology,
            mesh_text(made),
            made.remat,
            f"yes, {-made.missing / GIB:.2f} left" if made.fits else f"no, {made.missing / GIB:.2f} too much",
            size(memory.arguments),
            size(memory.temporaries),
            size(memory.outputs),
            *(
                (
                    f"{made.counts['flops'] / 1e12:.3g}",
                    f"{made.counts['bytes'] / 1e9:.3g}",
                    f"{made.seconds * 1e3:,.3g}",
                    made.bound,
                    f"{made.tokens_per_s:,.0f}",
                    f"{made.mfu:.1%}" if made.mfu else "",
                )
                if read
                else ("",) * 6
            ),
        )
    lines = [Text(line) for made in plans for line in sent(made)]
    left = sorted({reason for made in plans for reason in made.left_out})
    notes = [Text(MODEL), Text(f"Left out: {'; '.join(left)}. Memory in GiB.")]
    return Group(table, *lines, *notes)


def sent(made: Plan) -> list[str]:
    """A line for what a plan sends along each axis of the mesh, by kind."""
    total: dict[tuple[str, str], list[float]] = {}
    for one in made.collectives:
        entry = total.setdefault((one["axes"], one["kind"]), [0.0, 0.0])
        entry[0] += one["times"]
        entry[1] += one["sent"]
    if not total:
        return []
    parts = [
        f"{kind} along {axes} {sent / 1e9:.3g} GB in {times:,.0f}"
        for (axes, kind), (times, sent) in sorted(total.items(), key=lambda item: -item[1][1])
    ]
    more = partial("{}: {}".format, f"{made.variant} on {made.topology} sends")
    return [more(", ".join(parts[:6]))]
