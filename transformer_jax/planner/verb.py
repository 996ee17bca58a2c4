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
from transformer_jax.planner import calibrate, topologies
from transformer_jax.planner.plan import GIB, Plan
from transformer_jax.planner.search import Asked, mesh_text, remedy, search, sentence, smallest, too_large
from transformer_jax.store import place
from transformer_jax.sweep.cells import first_runs
from transformer_jax.sweep.widths import settled
from transformer_jax.train.run import Run

MODEL = (
    "Step = max(compute + kernels, hidden) + exposed. Compute is the compiler's cycles of products at the "
    "chip's clock or bytes of HBM, whichever is longer; the last two what collectives send over two links of "
    "a chip. MFU = FLOPs of the loss and its gradient, nothing recomputed / (step · chips · peak)."
)


def plan_experiment(options: argparse.Namespace, changes: dict[str, str]) -> int:
    """Plans each variant on each slice. Raises BadInput where one does not fit, or cannot be cut so."""
    say = lambda line: print(line, file=sys.stderr, flush=True)
    if options.calibrate:
        return show_calibration(options)
    topologies.require_compiler()
    if not options.topology:
        raise BadInput("plan needs --topology, a slice such as v5e:4x4, or --calibrate.")
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
            ratio = calibrate.calibration().get(made.topology.partition(":")[0])
            print(json.dumps(made.as_json() | {"calibration": ratio}))
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


def show_calibration(options: argparse.Namespace) -> int:
    """Runs that were made beside their plans."""
    rows = calibrate.compare([place(options.experiment)])
    if options.json:
        for row in rows:
            print(json.dumps(row))
        return 0
    table = Table(title="Measured runs beside their plans")
    names = ("run", "device", "runs", "step, ms", "planned", "ratio", "temporaries, MiB", "planned")
    for name in names:
        table.add_column(name, justify="left" if name in ("run", "device") else "right")
    for row in rows:
        measured = row["measured_temporaries"]
        table.add_row(
            row["label"],
            f"{row['chips']} × {row['device']}",
            str(row["runs"]),
            f"{row['measured'] * 1e3:,.3g}",
            f"{row['planned'] * 1e3:,.3g}",
            f"{row['ratio']:.2f}",
            "" if measured is None else f"{measured / 2**20:,.1f}",
            f"{row['planned_temporaries'] / 2**20:,.1f}",
        )
    Console().print(table)
    return 0


def asked_runs(options: argparse.Namespace, changes: dict[str, str]) -> dict[str, Run]:
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
    """The plans as a table, a column each, what they send, and how to read them."""
    plans = list(plans)
    table = Table("per chip", title="Planned training steps")
    for made in plans:
        table.add_column(made.variant, justify="right")
    for name in facts(plans[0]) if plans else ():
        table.add_row(name, *(facts(made)[name] for made in plans))
    lines = [Text(line) for made in plans for line in sent(made)]
    known = calibrate.calibration()
    kinds = dict.fromkeys(made.topology.partition(":")[0] for made in plans)
    uncalibrated = [kind for kind in kinds if kind not in known]
    calibrated = [
        f"Measured steps on {kind} took {known[kind]['ratio']:.2f} of the planned time "
        f"(median of {known[kind]['programs']} programs)."
        for kind in kinds
        if kind in known
    ]
    if uncalibrated:
        calibrated.append(f"Uncalibrated on {', '.join(uncalibrated)}: compared with no measurement.")
    left = sorted({reason for made in plans for reason in made.left_out})
    without = f"Left out: {'; '.join(left)}. " if left else ""
    notes = [Text(MODEL), *map(Text, calibrated), Text(f"{without}Memory in GiB.")]
    return Group(table, *lines, *notes)


def facts(made: Plan) -> dict[str, str]:
    """What the table says of a plan."""
    memory, counts = made.memory, made.counts
    size = lambda value: f"{value / GIB:.2f}"
    fits = f"yes, {size(-made.missing)} left" if made.fits else f"no, {size(made.missing)} too much"
    found = {"slice": made.topology, "mesh": mesh_text(made), "remat": made.remat, "fits": fits}
    found |= {name: size(getattr(memory, name)) for name in ("arguments", "temporaries", "outputs")}
    read = made.seconds is not None
    return found | {
        "TFLOP": f"{counts['flops'] / 1e12:.3g}" if read else "",
        "GB read, written": f"{counts['bytes'] / 1e9:.3g}" if read else "",
        "step, ms": f"{made.seconds * 1e3:,.3g}" if made.seconds else "",
        "bound": made.bound or "",
        "tokens/s": f"{made.tokens_per_s:,.0f}" if made.tokens_per_s else "",
        "MFU": f"{made.mfu:.1%}" if made.mfu else "",
    }


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
