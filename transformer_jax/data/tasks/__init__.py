"""The tasks by name. A new task: one file here and one line below."""

from __future__ import annotations

from transformer_jax.data.task import Task
from transformer_jax.data.tasks.associative_recall import AssociativeRecall
from transformer_jax.data.tasks.copy import Copy
from transformer_jax.data.tasks.imdb import Imdb
from transformer_jax.data.tasks.induction_heads import InductionHeads
from transformer_jax.data.tasks.masked_python_text import MaskedPythonText
from transformer_jax.data.tasks.python_text import PythonText
from transformer_jax.errors import unknown

TASKS: dict[str, type[Task]] = {
    task.name: task for task in (AssociativeRecall, Copy, InductionHeads, PythonText, MaskedPythonText, Imdb)
}


def task_class(name: str) -> type[Task]:
    """The task of that name; BadInput with the nearest one where there is none."""
    if name not in TASKS:
        raise unknown("task", name, TASKS)
    return TASKS[name]
