"""What the command line takes: its verbs with their options, and free settings by name."""

from __future__ import annotations

import argparse
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NoReturn

from transformer_jax.errors import BadInput
from transformer_jax.store import place

PROGRAM = "transformer_jax"
EXAMPLES = """examples:
  python -m transformer_jax run quickstart
  python -m transformer_jax run experiments/quickstart.py --scale single --variants full,linear
  python -m transformer_jax plan language_model --scale paper --topology v5e:4x4
  python -m transformer_jax report runs/quickstart-smoke
  python -m transformer_jax check gated_delta_net
  python -m transformer_jax bench --variants full linear --lengths 1024 4096
"""


class Parser(argparse.ArgumentParser):
    """Says what is wrong in one sentence, as everything else here does."""

    def error(self, message: str) -> NoReturn:
        raise BadInput(f"{message[:1].upper()}{message[1:].rstrip('.')}. See `python -m {self.prog} --help`.")


def parser(functions: Mapping[str, Callable[[argparse.Namespace], int]]) -> Parser:
    """The parser; `functions` has what each verb hands over to."""
    top = Parser(
        prog=PROGRAM,
        description="A laboratory for attention mechanisms: define, prove, run and compare them fairly.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    verbs = top.add_subparsers(dest="verb", metavar="VERB", required=True)

    def verb(name: str, says: str, free: str = "") -> Parser:
        added = verbs.add_parser(name, help=says, description=says, epilog=free or None, allow_abbrev=False)
        added.set_defaults(function=functions[name], free=bool(free))
        return added

    listed = verb("list", "Show mechanisms, tasks and experiments, or all of one.")
    listed.add_argument("name", nargs="?", metavar="NAME", help="show all that is known of this one")
    listed.add_argument("--markdown", action="store_true", help="print the page of all mechanisms")
    fields = (
        "Any field of the experiment can be set by its name: --model.width 128, --train.steps 2000, "
        "--task.length 128, --tune.seeds 5, --tune.learning_rate 1e-3 3e-3, "
        "--match parameters, --sliding_window.window 16, --variants full,linear,gated_delta_net+full; "
        "on several devices --train.mesh.fsdp 4."
    )
    run = verb("run", "Run an experiment, or continue it, and report it.", fields)
    launch = verb("launch", "Print the script or manifest that runs an experiment on a cluster.", fields)
    plan = verb(
        "plan",
        "Compile an experiment's training step for TPUs that are not here: does it fit, how fast is it?",
        fields,
    )
    for either in (run, launch, plan):
        either.add_argument("experiment", metavar="EXPERIMENT", help="a file, or a name in experiments/")
        either.add_argument("--scale", default="smoke", help="smoke (default), single or paper")
    plan.add_argument("--topology", help="a slice such as v5e:4x4; several with commas")
    plan.add_argument("--mesh", help="its axes, such as data=4,fsdp=4 (default: the experiment's)")
    plan.add_argument("--search", action="store_true", help="try meshes and rematerialization on that slice")
    plan.add_argument("--smallest", action="store_true", help="find the smallest slice of that generation")
    plan.add_argument(
        "--calibrate",
        action="store_true",
        help="EXPERIMENT is a directory of runs: set beside their plans what was measured",
    )
    launch.add_argument("--on", required=True, metavar="PLACE", help="tpu-vm, gke, kubeflow or slurm")
    launch.add_argument("--topology", required=True, help="a slice such as v5e:4x4; on slurm NODESxGPUS")
    launch.add_argument("--slices", type=int, default=1, help="how many slices (gke)")
    launch.add_argument("--out", required=True, help="where results go: gs://..., or a folder (slurm)")
    launch.add_argument("--data", default="data_cache", help="where data sets are kept")
    launch.add_argument("--name", help="of the job (default: from EXPERIMENT and the scale)")
    launch.add_argument("--image", help="container image with this package (gke, kubeflow)")
    launch.add_argument("--zone", help="of Google Cloud (tpu-vm)")
    launch.add_argument("--spot", action="store_true", help="take machines that may be preempted")
    launch.add_argument("--time", default="24:00:00", help="limit of the job (slurm), [DAYS-]HH:MM:SS")
    launch.add_argument(
        "--grace", type=int, default=300, help="seconds from SIGTERM to the end, for a last save (300)"
    )
    run.add_argument(
        "--out",
        type=_place,
        help="where results go (default: runs/EXPERIMENT-SCALE, and a short hash of the settings given here)",
    )
    run.add_argument("--settings", action="store_true", help="show what can be set, as it is set, and stop")
    run.add_argument("--data", type=_place, default=Path("data_cache"), help="where data sets are kept")
    for name, of, says in (
        (
            "--coordinator",
            str,
            "HOST:PORT of process 0; with the next two, where the environment does not say",
        ),
        ("--processes", int, "how many processes run this together"),
        ("--process", int, "which of them this one is, from 0"),
    ):
        run.add_argument(name, type=of, help=says)
    report = verb("report", "Write tables, figures and a page for directories of results.")
    report.add_argument("directories", nargs="+", type=_place, metavar="DIR")
    report.add_argument(
        "--keep", type=_place, metavar="DIR", help="copy the results there, small enough for a repository"
    )
    check = verb("check", "Prove a mechanism by the conformance suite.")
    check.add_argument("target", metavar="VARIANT_OR_FILE")
    bench = verb(
        "bench",
        "Measure time and memory against length, beside jax.nn and PyTorch.",
        "bench NAME_OR_FILE... measures these variants: names of `list`, or files of your own mechanisms. "
        "Settings and their defaults: python -m transformer_jax bench --settings.",
    )
    bench.add_argument("--settings", action="store_true", help="show what can be set, and stop")
    bench.add_argument("--out", type=_place, metavar="DIR", help="write the measurements there, as run does")
    generate = verb(
        "generate",
        "Write text from a trained model, with its speed.",
        "Settings and their defaults: python -m transformer_jax generate --settings.",
    )
    generate.add_argument(
        "checkpoint", nargs="?", type=_place, metavar="CHECKPOINT", help="directory of a run"
    )
    generate.add_argument("--settings", action="store_true", help="show what can be set, and stop")
    for machine_readable in (listed, plan, report, bench):
        machine_readable.add_argument("--json", action="store_true", help="print machine-readable lines")
    return top


def settings(words: Sequence[str]) -> dict[str, str]:
    """Free settings by name: --model.width 128, --model.width=128, model.width=128; lists by comma or space.

    Raises BadInput on a word that belongs to no name, a name without a value and a name given twice.
    """
    found: dict[str, list[str]] = {}
    name = None
    for word in words:
        text = word.removeprefix("--")
        waiting = name is not None and not found[_plain(name)]  # for its value, whatever that looks like
        if "=" in text and (
            word.startswith("--")
            or (not waiting and ("." in text.partition("=")[0] or text.startswith("variants=")))
        ):
            key, _, value = text.partition("=")
            _new(found, key).append(value)
            name = None
        elif word.startswith("--"):
            name = text
            _new(found, name)
        elif name is None:
            raise BadInput(
                f"{word!r} is one word too many: settings are --name value, such as --model.width 128."
            )
        else:
            found[_plain(name)].append(word)
    for key, values in found.items():
        if not values:
            raise BadInput(f"--{key} has no value: write --{key} VALUE.")
    return {key: ",".join(values) for key, values in found.items()}


def folder(experiment: str, scale: str, changes: dict[str, str]) -> str:
    """A name for the results: another one for each set of changes, so that none is in another's way. What
    only says how it is computed changes none: on another mesh the run goes on in the same directory."""
    how = ("train.mesh.", "train.profile")
    changes = {name: text for name, text in changes.items() if not name.startswith(how)}
    if not changes:
        return f"{experiment}-{scale}"
    return (
        f"{experiment}-{scale}-{hashlib.sha256(json.dumps(changes, sort_keys=True).encode()).hexdigest()[:6]}"
    )


def _place(text: str) -> Path:
    try:
        return place(text)
    except BadInput as error:  # which the parser would replace by a sentence of its own
        raise argparse.ArgumentTypeError(str(error)) from None


def _plain(name: str) -> str:
    return name.replace("-", "_")


def _new(found: dict[str, list[str]], name: str) -> list[str]:
    if _plain(name) in found:
        raise BadInput(f"--{name} is given twice: give it once.")
    return found.setdefault(_plain(name), [])
