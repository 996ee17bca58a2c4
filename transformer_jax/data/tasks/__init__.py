"""The tasks by name. A new task: one file here and one line below."""

from __future__ import annotations

from transformer_jax.data.task import Task
from transformer_jax.data.tasks.associative_recall import AssociativeRecall
from transformer_jax.data.tasks.catalogue_text import CatalogueText
from transformer_jax.data.tasks.cifar10 import Cifar10
from transformer_jax.data.tasks.copy import Copy
from transformer_jax.data.tasks.imdb import Imdb
from transformer_jax.data.tasks.induction_heads import InductionHeads
from transformer_jax.data.tasks.linear_regression import LinearRegression
from transformer_jax.data.tasks.list_ops import ListOps
from transformer_jax.data.tasks.masked_python_text import MaskedPythonText
from transformer_jax.data.tasks.modular_arithmetic import BracketedArithmetic, ModularArithmetic
from transformer_jax.data.tasks.needle_retrieval import NeedleRetrieval
from transformer_jax.data.tasks.parity import Parity
from transformer_jax.data.tasks.pathfinder import Pathfinder
from transformer_jax.data.tasks.permutation_group import PermutationGroup
from transformer_jax.data.tasks.python_text import PythonText
from transformer_jax.data.tasks.recall_mix import RecallMix
from transformer_jax.data.tasks.selective_copying import SelectiveCopying
from transformer_jax.data.tasks.text_folder import SubwordFolder, TextFolder
from transformer_jax.errors import unknown

TASKS: dict[str, type[Task]] = {
    task.name: task
    for task in (
        AssociativeRecall,
        RecallMix,
        InductionHeads,
        NeedleRetrieval,
        Copy,
        SelectiveCopying,
        ListOps,
        Pathfinder,
        Parity,
        ModularArithmetic,
        BracketedArithmetic,
        PermutationGroup,
        LinearRegression,
        PythonText,
        MaskedPythonText,
        TextFolder,
        SubwordFolder,
        CatalogueText,
        Imdb,
        Cifar10,
    )
}


def task_class(name: str) -> type[Task]:
    """The task of that name; BadInput with the nearest one where there is none."""
    if name not in TASKS:
        raise unknown("task", name, TASKS)
    return TASKS[name]
