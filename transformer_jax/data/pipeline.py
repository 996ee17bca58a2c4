"""From a task to the batches of a training step: addressed by one integer, so resuming is exact.

Batch number s of a run holds the positions s·batch … s·batch + batch − 1 of an endless sequence, whatever the
number of processes; each process makes those rows of it that its devices hold. A position is an example's
number in an endless task; in a finite one it is a place in an epoch, and each epoch has an order of its own.
grain carries the batches, prefetched by a thread.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grain
import numpy as np

from transformer_jax.data import builders
from transformer_jax.data.draws import permutation
from transformer_jax.data.task import Batch, Split, Task
from transformer_jax.errors import BadInput

ENDLESS = 2**60  # batches


class Stream:
    """The training batches, or this process's rows of them: an iterator that never ends.

    `state()` is JSON: the number of the next batch, and what the pipeline is; `restore` refuses another
    pipeline's.
    """

    def __init__(self, task: Task, *, batch: int, seed: int, directory: Path, rows: np.ndarray | None = None):
        _check(batch)
        if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
            raise BadInput(f"The seed must be a whole number of at least 0, not {seed!r}.")
        self._task, self._batch, self._seed = task, batch, seed
        self._rows = np.arange(batch) if rows is None else rows
        self._stored = None if task.endless else builders.read(task, "train", directory)
        self._pipeline = {
            "task": task.name,
            "fingerprint": task.fingerprint(),
            "examples": len(self._stored) if self._stored else None,
            "batch": batch,
            "seed": seed,
        }
        self._order = functools.lru_cache(maxsize=2)(
            lambda epoch: permutation(seed, epoch, len(self._stored or ()))
        )
        # A batch is one element: a Python call per example (grain's own shuffle and batch: 11 µs each) would
        # cost more than a tiny model's whole step.
        options = grain.ReadOptions(num_threads=1, prefetch_buffer_size=4)
        self._iterator = iter(grain.MapDataset.range(ENDLESS).map(self._make).to_iter_dataset(options))

    def _make(self, step: int) -> Batch:
        positions = step * self._batch + self._rows
        if self._stored is None:
            return checked(self._task, self._task.examples(self._seed, positions, step))
        epochs, places = np.divmod(positions, len(self._stored))
        indices = np.empty_like(places)
        for epoch in np.unique(epochs):
            here = epochs == epoch
            indices[here] = self._order(int(epoch))[places[here]]
        return checked(self._task, self._stored[indices])

    def __iter__(self) -> Stream:
        return self

    def __next__(self) -> Batch:
        return next(self._iterator)

    def state(self) -> dict[str, Any]:
        """Where the stream stands: the number of the next batch, and the pipeline it belongs to."""
        return {"next": int(self._iterator.get_state()["next_index"]), "pipeline": dict(self._pipeline)}

    def restore(self, state: dict[str, Any]) -> None:
        """Continues at a saved state. BadInput where that belongs to another task, batch, seed or data."""
        saved = state["pipeline"]
        changed = [key for key in self._pipeline if saved.get(key) != self._pipeline[key]]
        if changed:
            what = ", ".join(
                f"{key} was {saved.get(key)!r} and is {self._pipeline[key]!r}" for key in changed
            )
            raise BadInput(
                f"The saved data position belongs to other data: {what}; go back, or start a new run."
            )
        self._iterator.set_state({"next_index": int(state["next"])})


def train_batches(
    task: Task, *, batch: int, seed: int, directory: Path, rows: np.ndarray | None = None
) -> Stream:
    """The training stream of a task. batch: rows over all processes; rows: which of them this one makes, in
    order (default: all).

    A finite training set is shuffled anew in each epoch, by the seed; a batch may hold the end of one epoch
    and the beginning of the next, so no example is dropped.
    """
    return Stream(task, batch=batch, seed=seed, directory=directory, rows=rows)


def evaluation_batches(
    task: Task,
    split: Split,
    *,
    batch: int,
    directory: Path,
    limit: int | None = None,
    rows: np.ndarray | None = None,
) -> Iterator[Batch]:
    """A finite split in order, all of it or its first `limit` examples; of each batch only `rows`.

    The last batch is filled with repetitions of the last example that weigh 0: shapes are static and no row
    is empty.
    """
    _check(batch)
    if limit is not None and limit < 1:
        raise BadInput(
            f"An evaluation of {limit} examples says nothing: ask for at least 1, or for all with no limit."
        )
    stored = builders.read(task, split, directory)
    count = min(len(stored), limit or len(stored))
    rows = np.arange(batch) if rows is None else rows

    def make(step: int) -> Batch:
        positions = step * batch + rows
        result = checked(task, stored[np.minimum(positions, count - 1)])
        weights = result["weights"]
        real = (positions < count).reshape(-1, *[1] * (weights.ndim - 1))
        return {**result, "weights": weights * real.astype(np.float32)}

    options = grain.ReadOptions(num_threads=1, prefetch_buffer_size=2)
    return iter(grain.MapDataset.range(-(-count // batch)).map(make).to_iter_dataset(options))


def checked(task: Task, batch: Batch) -> Batch:
    """The batch, if a model can take it.

    Raises BadInput on a token or target outside the vocabulary, which would be looked up silently as
    another, on a number that is not finite, and on a row that is all padding, which has nothing to read.
    """
    for name, bound in (("inputs", task.vocabulary), ("targets", task.outputs)):
        if np.issubdtype(batch[name].dtype, np.floating):
            if not np.isfinite(batch[name]).all():
                raise BadInput(
                    f"{task.name}: {name} holds a number that is not finite: mend the task's data."
                )
            continue
        low, high = int(batch[name].min()), int(batch[name].max())
        if low < 0 or high >= bound:
            raise BadInput(
                f"{task.name}: {name} holds the id {low if low < 0 else high}, which is outside 0 to "
                f"{bound - 1}: mend the task's data or raise its vocabulary."
            )
    lengths = batch.get("lengths")
    if lengths is not None and lengths.min() < 1:
        row = int(lengths.argmin())
        raise BadInput(
            f"{task.name}: row {row} of a batch is all padding: leave empty examples out of the data."
        )
    return batch


def _check(batch: int) -> None:
    if isinstance(batch, bool) or not isinstance(batch, int) or batch < 1:
        raise BadInput(f"The batch must be a whole number of at least 1, not {batch!r}.")
