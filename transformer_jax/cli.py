"""The command line: verbs, each of which hands over to one function.

Everything heavy is imported by the verb that needs it, so that `--help` is quick.
"""

from __future__ import annotations

import argparse
import hashlib
import inspect
import json
import logging
import os
import re
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from transformer_jax.errors import BadInput, unknown
from transformer_jax.store import place, reach

PROGRAM = "transformer_jax"
VERBS = ("list", "run", "launch", "report", "check", "bench", "generate")
EXAMPLES = """examples:
  python -m transformer_jax run quickstart
  python -m transformer_jax run experiments/quickstart.py --scale single --variants full,linear
  python -m transformer_jax report runs/quickstart-smoke
  python -m transformer_jax check gated_delta_net
  python -m transformer_jax bench --variants full linear --lengths 1024 4096
"""


class Parser(argparse.ArgumentParser):
    """Says what is wrong in one sentence, as everything else here does."""

    def error(self, message: str) -> NoReturn:
        raise BadInput(f"{message[:1].upper()}{message[1:].rstrip('.')}. See `python -m {self.prog} --help`.")


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a verb; returns the exit code: 0, 1 where a check or a run failed, 2 on bad input."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    logging.getLogger("absl").setLevel(logging.ERROR)  # the checkpoint library warns of what is meant
    try:
        return _verb(arguments)
    except BadInput as error:
        print(f"Error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nStopped. The same command continues where this one was.", file=sys.stderr)
        return 130
    except BrokenPipeError:  # `list | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def run_file(file: str) -> NoReturn:
    """What an experiment file does when it is run itself: `python experiments/x.py --scale smoke ...`."""
    sys.exit(main(["run", file, *sys.argv[1:]]))


def parser() -> Parser:
    top = Parser(
        prog=PROGRAM,
        description="A laboratory for attention mechanisms: define, prove, run and compare them fairly.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    verbs = top.add_subparsers(dest="verb", metavar="VERB", required=True)

    def verb(name: str, says: str, function, free: str = "") -> Parser:
        added = verbs.add_parser(name, help=says, description=says, epilog=free or None, allow_abbrev=False)
        added.set_defaults(function=function, free=bool(free))
        return added

    listed = verb("list", "Show mechanisms, tasks and experiments, or all of one.", list_everything)
    listed.add_argument("name", nargs="?", metavar="NAME", help="show all that is known of this one")
    listed.add_argument("--markdown", action="store_true", help="print the page of all mechanisms")
    fields = (
        "Any field of the experiment can be set by its name: --model.width 128, --train.steps 2000, "
        "--task.length 128, --tune.seeds 5, --tune.learning_rate 1e-3 3e-3, "
        "--match parameters, --sliding_window.window 16, --variants full,linear,gated_delta_net+full; "
        "on several devices --train.mesh.fsdp 4."
    )
    run = verb("run", "Run an experiment, or continue it, and report it.", run_experiment, fields)
    launch = verb(
        "launch", "Print the script or manifest that runs an experiment on a cluster.", print_launch, fields
    )
    for either in (run, launch):
        either.add_argument("experiment", metavar="EXPERIMENT", help="a file, or a name in experiments/")
        either.add_argument("--scale", default="smoke", help="smoke (default), single or paper")
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
    report = verb("report", "Write tables, figures and a page for directories of results.", write_report)
    report.add_argument("directories", nargs="+", type=_place, metavar="DIR")
    report.add_argument(
        "--keep", type=_place, metavar="DIR", help="copy the results there, small enough for a repository"
    )
    check = verb("check", "Prove a mechanism by the conformance suite.", run_checks)
    check.add_argument("target", metavar="VARIANT_OR_FILE")
    bench = verb(
        "bench",
        "Measure time and memory against length, beside jax.nn and PyTorch.",
        run_bench,
        "bench NAME_OR_FILE... measures these variants: names of `list`, or files of your own mechanisms. "
        "Settings and their defaults: python -m transformer_jax bench --settings.",
    )
    bench.add_argument("--settings", action="store_true", help="show what can be set, and stop")
    bench.add_argument("--out", type=_place, metavar="DIR", help="write the measurements there, as run does")
    generate = verb(
        "generate",
        "Write text from a trained model, with its speed.",
        run_generate,
        "Settings and their defaults: python -m transformer_jax generate --settings.",
    )
    generate.add_argument(
        "checkpoint", nargs="?", type=_place, metavar="CHECKPOINT", help="directory of a run"
    )
    generate.add_argument("--settings", action="store_true", help="show what can be set, and stop")
    for machine_readable in (listed, report, bench):
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


def list_everything(options: argparse.Namespace) -> int:
    """A line each, one in full, JSON lines, or the page of the documentation."""
    from transformer_jax import listing
    from transformer_jax.attention import overview

    if options.markdown:
        print(overview.page(), end="")
    else:
        listing.show(options.name, as_json=options.json)
    return 0


def run_experiment(options: argparse.Namespace) -> int:
    """The sweep, then its report. 1 where a run failed."""
    from transformer_jax.parallel import group, processes

    where = processes.locate(
        processes.surroundings(),
        coordinator=options.coordinator,
        processes=options.processes,
        process=options.process,
    )
    with group.joined(where):
        return _run_together(options)


def _run_together(options: argparse.Namespace) -> int:
    from transformer_jax import experiment, measurement
    from transformer_jax.parallel.group import each, first
    from transformer_jax.report.write import report
    from transformer_jax.sweep import sweep

    path = experiment.find(options.experiment)
    written, doc = experiment.load(path)
    changes = settings(options.rest)
    chosen = written.at(options.scale, changes)
    if options.settings:
        print("\n".join(chosen.listed()))
        return 0
    out = options.out or Path("runs") / folder(path.stem, options.scale, changes)
    each(lambda: reach(out, options.data))
    about = {
        "name": path.stem,
        "scale": options.scale,
        "doc": doc,
        "command": shlex.join(["transformer-jax", *_run_words(options, out, changes)]),
    }
    if isinstance(written, experiment.Measurement):
        measurement.measure(written.at(options.scale, changes), out, about=about)
        report([out])
        return 0
    reference = next(iter(written.published.comparable_at), None) if written.published else None
    paper = written.at(reference) if reference else None
    results = sweep(written.at(options.scale, changes), out, data=options.data, about=about, published=paper)
    failed = [result for result in results if result["status"] == "failed"]
    if len(failed) == len(results):
        print(f"Every run failed, the first with: {failed[0]['message']}", file=sys.stderr)
        return 1
    if first():
        report([out])
    return 1 if failed else 0


def _run_words(options: argparse.Namespace, out: Any, changes: dict[str, str]) -> list[str]:
    """The command line of a run, behind the program's name."""
    words = ["run", options.experiment, "--scale", options.scale, "--out", str(out)]
    words += ["--data", str(options.data)]
    return words + [part for name, value in changes.items() for part in (f"--{name}", value)]


def print_launch(options: argparse.Namespace) -> int:
    """The script or manifest, once the experiment is known to be one."""
    from transformer_jax import experiment
    from transformer_jax.launch import launch

    if options.on not in launch.PLACES:
        raise unknown("place", options.on, launch.PLACES)
    path, changes = experiment.find(options.experiment), settings(options.rest)
    experiment.load(path)[0].at(options.scale, changes)
    name = re.sub(r"[^a-z0-9]+", "-", f"{path.stem}-{options.scale}".lower()).strip("-")
    wanted = launch.Launch(
        on=options.on,
        topology=options.topology,
        slices=options.slices,
        run=_run_words(options, options.out, changes),
        out=options.out,
        name=options.name or name,
        image=options.image,
        zone=options.zone,
        spot=options.spot,
        time=options.time,
    )
    print(launch.written(wanted), end="")
    return 0


def folder(experiment: str, scale: str, changes: dict[str, str]) -> str:
    """A name for the results: another one for each set of changes, so that none is in another's way. A mesh
    changes none: on another the run goes on in the same directory."""
    changes = {name: value for name, value in changes.items() if not name.startswith("train.mesh.")}
    if not changes:
        return f"{experiment}-{scale}"
    return (
        f"{experiment}-{scale}-{hashlib.sha256(json.dumps(changes, sort_keys=True).encode()).hexdigest()[:6]}"
    )


def write_report(options: argparse.Namespace) -> int:
    """Files beside the results and tables here, or JSON lines."""
    from transformer_jax.report import write

    reach(*options.directories)
    if options.json:
        write.print_lines(options.directories)
    else:
        write.report(options.directories, kept=options.keep)
    return 0


def run_checks(options: argparse.Namespace) -> int:
    """Each check as it ends. 1 where one failed."""
    from transformer_jax.conformance import check
    from transformer_jax.conformance.sharding import eight_host_devices

    eight_host_devices()
    failed = 0
    for result in check(options.target):
        failed += result.outcome == "failed"
        detail = f": {result.detail}" if result.detail else ""
        print(f"{result.outcome:9}  {result.variant} {result.direction} {result.check}{detail}", flush=True)
    print("Every check passed." if not failed else f"{failed} check{'s' * (failed != 1)} failed.")
    return 1 if failed else 0


def run_bench(options: argparse.Namespace) -> int:
    """Tables, or JSON lines; with --out a directory as `run` writes it, and its report."""
    from transformer_jax import measurement
    from transformer_jax.measure import bench
    from transformer_jax.report.write import report

    words = list(options.rest)
    first = next((i for i, word in enumerate(words) if word.startswith("-")), len(words))
    if first:  # `bench full my.py --lengths 1024`
        options.rest = ["--variants", ",".join(words[:first]), *words[first:]]
    config = _configured(bench.Bench, options)
    if config is None:
        return 0
    if options.out:
        measurement.of_bench(config, options.out, words)
        report([options.out])
    else:
        bench.show(config, as_json=options.json)
    return 0


def run_generate(options: argparse.Namespace) -> int:
    """Text from a checkpoint; its speed goes to stderr, so that the text can be piped."""
    from transformer_jax import generation

    if options.checkpoint is None and not options.settings:
        raise BadInput("generate needs CHECKPOINT, the directory of a run, such as runs/x/cells/y.")
    if options.checkpoint is not None:
        reach(options.checkpoint)
    request = _configured(generation.Generate, options, run=options.checkpoint)
    if request is None:
        return 0
    written = generation.generate(request)
    for text in written.texts:
        print(text)
    speed, prompt = f"{written.tokens_per_second:,.0f} tokens/s", f"{written.prefill_seconds * 1e3:.0f} ms"
    compiled = f"{written.compile_seconds:.1f} s"
    print(f"{speed} after {prompt} for the prompt (compiled in {compiled}).", file=sys.stderr)
    return 0


def _verb(arguments: list[str]) -> int:
    if arguments and not arguments[0].startswith("-") and arguments[0] not in VERBS:
        raise unknown("verb", arguments[0], VERBS)
    options, rest = parser().parse_known_args(arguments)
    options.rest = rest
    if rest and not options.free:
        raise BadInput(f"{options.verb} does not know {' '.join(rest)}: see `{options.verb} --help`.")
    return options.function(options)


def _configured(kind: type, options: argparse.Namespace, **given: Any) -> Any:
    """The dataclass `kind` from free settings; None where the user asked to see them instead."""
    from transformer_jax import overrides

    known = {name: field for name, field in overrides.fields(kind).items() if name not in given}
    if options.settings:
        print("\n".join([*overrides.listed(kind), "", inspect.cleandoc(kind.__doc__ or "")]))
        return None
    words = settings(options.rest)
    for name in words:
        if name not in known:
            raise unknown(f"setting of {options.verb}", name, known)
    return kind(**given, **{name: overrides.parse(name, known[name], text) for name, text in words.items()})


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
