"""What there is: mechanisms, tasks and experiments, all of them in a line each, or one in full."""

from __future__ import annotations

import inspect
import json
from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from transformer_jax import experiment, overrides
from transformer_jax.attention import catalogue, overview
from transformer_jax.attention.core import CoreMixer
from transformer_jax.data.task import Task
from transformer_jax.data.tasks import TASKS
from transformer_jax.errors import unknown

SPREAD = {
    "parallel": "worked on by all at once, each its shard",
    "gathered": "gathered on each",
    "serial": "worked on by one after another",
    "refused": "not spread",
}


def show(name: str | None = None, *, as_json: bool = False) -> None:
    """Prints a line for everything, or all that is known of `name`.

    Raises BadInput, with the nearest name, where nothing is called so.
    """
    if as_json:
        for row in rows(name):
            print(json.dumps(row))
    elif name is None:
        _everything()
    else:
        print(record(name))


def rows(name: str | None = None) -> list[dict[str, Any]]:
    """Everything, or what is called `name`, as JSON values."""
    found = [
        *map(overview.entry, catalogue.catalogue().values()),
        *({"kind": "task", "name": task.name, **_task_line(task)} for task in TASKS.values()),
        *(
            {"kind": "experiment", "name": each, "file": str(path)}
            for each, path in experiment.available().items()
        ),
    ]
    if name is None:
        return found
    one = [row for row in found if row["name"] == name]
    if not one:
        raise unknown("name", name, [row["name"] for row in found])
    return one


def record(name: str) -> str:
    """All that is known of a mechanism, a task or an experiment, in words."""
    in_words = {"variant": _mechanism, "task": _task, "experiment": _experiment}
    return "\n\n".join(in_words[row["kind"]](row["name"]) for row in rows(name))


def _mechanism(name: str) -> str:
    mixer = catalogue.find(name)
    said = overview.entry(mixer)
    definition = inspect.getdoc(mixer.definition) if issubclass(mixer, CoreMixer) else None
    facts = {
        "family": said["family"],
        "paper": said["paper"],
        "time in T": said["time"],
        "decode state": said["state"] or "none",
        "on devices": f"a sequence is {SPREAD[said['sequence']]}",
        "defined for": ", ".join(said["defined for"]),
        **{mode: f"not defined: {why}" for mode, why in said["refused"].items()},
        **said["notes"],
        "definition": definition or "see the file",
        "file": inspect.getsourcefile(mixer),
    }
    options = [
        f"--{name}.{option} {said['options'][option]}  ({overrides.describe(kind)})"
        for option, (kind, _) in catalogue.options(mixer).items()
    ]
    lines = [f"{name}: {said['about']}", "", inspect.cleandoc(mixer.__doc__ or ""), ""]
    lines += [f"{fact + ':':15}" + text.replace("\n", "\n" + 15 * " ") for fact, text in facts.items()]
    return "\n".join([*lines, *(["options, with their defaults:", *_indented(options)] if options else [])])


def _task(name: str) -> str:
    return "\n".join([f"{name}: {inspect.getdoc(TASKS[name])}", "", *overrides.listed(TASKS[name], "task")])


def _experiment(name: str) -> str:
    path = experiment.available()[name]
    return f"{name}: {experiment.load(path)[1]}\n\nfile: {path}"


def _task_line(task: type[Task]) -> dict[str, Any]:
    about = inspect.cleandoc(task.__doc__ or "").splitlines()[0]
    return {"metric": task.metric, "target": task.target, "causal": task.causal, "about": about}


def _everything() -> None:
    """Families of mechanisms, tasks and experiments, a name and a sentence each."""
    console, everything = Console(highlight=False), rows()
    mechanisms = [row for row in everything if row["kind"] == "variant"]
    width = max(len(row["name"]) for row in everything)
    for family in dict.fromkeys(row["family"] for row in mechanisms):
        mine = [row for row in mechanisms if row["family"] == family]
        _print(console, f"{family}", [(row["name"], row["about"]) for row in mine], width)
    tasks = [(row["name"], row["about"]) for row in everything if row["kind"] == "task"]
    _print(console, "tasks", tasks, width)
    experiments = [(row["name"], row["file"]) for row in everything if row["kind"] == "experiment"]
    _print(console, "experiments", experiments, width)
    console.print("`list NAME` says all of one: paper, definition, what it refuses and why, options.")


def _print(console: Console, title: str, lines: Sequence[tuple[str, str]], width: int) -> None:
    table = Table.grid(padding=(0, 2))
    table.add_column(no_wrap=True, min_width=width)
    table.add_column(overflow="fold")
    for name, about in lines:
        table.add_row(escape(name), escape(about))
    console.print(title, style="bold")
    console.print(table)
    console.print()


def _indented(lines: Sequence[str]) -> list[str]:
    return [f"  {line}" for line in lines]
