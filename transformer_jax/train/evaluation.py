"""What a finite split sums to, over all its targets."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

from transformer_jax.data import pipeline
from transformer_jax.data.task import Split, Task
from transformer_jax.errors import BadInput
from transformer_jax.parallel.mesh import BATCH
from transformer_jax.parallel.rows import rows_here, spread
from transformer_jax.train import metrics as measures
from transformer_jax.train.devices import rows
from transformer_jax.train.run import Run
from transformer_jax.train.signals import Interrupted


def sums(
    run: Run,
    task: Task,
    split: Split,
    evaluate: Callable[[Any], Any],
    *,
    mesh: Mesh,
    data: Path,
    stopping: Callable[[], bool],
) -> dict[str, float]:
    """The sums that `metrics.of_sums` takes, over a split of a task of the run.

    Args:
      evaluate: batch on the mesh -> its sums.
      data: directory of the finite splits.
      stopping: whether a signal asks to end, asked before every batch.

    Raises:
      BadInput: the split has no target that counts.
      Interrupted: `stopping` said so.
    """
    # Longer sequences come in smaller batches, so that a step holds no more tokens than it did.
    own = run.task.length
    size = (run.train.evaluation_batch or run.train.batch) * own // max(task.length, own)
    parts = math.prod(mesh.shape[axis] for axis in BATCH)
    size = max(parts, size // parts * parts)
    here = rows_here(rows(mesh), size)
    batches = pipeline.evaluation_batches(
        task,
        split,
        batch=size,
        directory=data,
        # The test split is scored whole: the baselines beside it are.
        limit=run.train.evaluation_examples if split == "validation" else None,
        rows=here,
    )
    total = dict(measures.NOTHING)
    late: deque[Any] = deque()

    def add() -> None:
        for key, value in jax.device_get(late.popleft()).items():
            total[key] += float(value)

    for batch in batches:
        if stopping():
            raise Interrupted
        late.append(evaluate({name: spread(local, rows(mesh), here, size) for name, local in batch.items()}))
        if len(late) > 2:
            add()
    while late:
        add()
    if total["weight"] == 0:
        raise BadInput(
            f"The {split} split of {task.name} has no target that counts: there is nothing to measure."
        )
    return total
