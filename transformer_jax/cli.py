"""The command line: verbs, each of which hands over to one function.

Everything heavy is imported by the verb that needs it, so that `--help` is quick.
"""

from __future__ import annotations

import argparse
import inspect
import logging
import os
import re
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from transformer_jax.arguments import folder, parser, settings
from transformer_jax.errors import BadInput, unknown
from transformer_jax.store import reach


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
        grace=options.grace,
    )
    print(launch.written(wanted), end="")
    return 0


def plan_experiment(options: argparse.Namespace) -> int:
    """A table, or JSON lines; what does not fit is said at the end."""
    from transformer_jax.planner.topologies import prepare

    prepare()  # before JAX looks for devices
    from transformer_jax.planner import verb

    return verb.plan_experiment(options, settings(options.rest))


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


VERBS = {
    "list": list_everything,
    "run": run_experiment,
    "plan": plan_experiment,
    "launch": print_launch,
    "report": write_report,
    "check": run_checks,
    "bench": run_bench,
    "generate": run_generate,
}


def _verb(arguments: list[str]) -> int:
    if arguments and not arguments[0].startswith("-") and arguments[0] not in VERBS:
        raise unknown("verb", arguments[0], VERBS)
    options, rest = parser(VERBS).parse_known_args(arguments)
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
