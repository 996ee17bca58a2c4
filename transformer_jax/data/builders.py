"""Finite splits on disk: written once as a TFDS data set of array_record files, then read by index.

Everything here works without TensorFlow. A split lies in DIRECTORY/TASK/SPLIT-FINGERPRINT, so changed
parameters never meet stale data, and it appears there by one rename, so processes that write it at once
cannot harm each other.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from transformer_jax.data.task import SPLITS, Batch, Split, Task
from transformer_jax.errors import BadInput, unknown
from transformer_jax.store import absolute, place, remote, scratch, write_text

_turn = threading.Lock()
LAST = "dataset_info.json"  # the file of a split that is written last
IN_MEMORY = 512 * 2**20  # bytes of records; a larger split is read from disk batch by batch


class TaskRows(tfds.core.GeneratorBasedBuilder):
    """One finite split of any task as a TFDS data set; the order of `Task.rows` is kept."""

    VERSION = tfds.core.Version("1.0.0")

    def __init__(self, task: Task, split: Split, source: Path, **options: Any):
        self._task, self._split, self._source = task, split, source
        super().__init__(file_format="array_record", **options)

    def _rows(self) -> Iterator[Mapping[str, Any]]:
        return self._task.rows(self._split, self._source)

    def _info(self) -> tfds.core.DatasetInfo:
        first = next(self._rows(), None)
        if first is None:
            raise BadInput(
                f"{self._task.name}: the {self._split} split is empty; give it at least one example."
            )
        return tfds.core.DatasetInfo(
            builder=self,
            description=json.dumps(self._task.parameters(), sort_keys=True, default=str),
            features=tfds.features.FeaturesDict({name: _feature(value) for name, value in first.items()}),
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        return {self._split: self._generate_examples()}

    def _generate_examples(self) -> Iterator[tuple[int, Mapping[str, Any]]]:
        yield from enumerate(self._rows())


def _feature(value: Any) -> tfds.features.FeatureConnector:
    if isinstance(value, bytes):
        return tfds.features.Text()
    if isinstance(value, int):
        return tfds.features.Scalar(np.int32)
    return tfds.features.Tensor(shape=value.shape, dtype=value.dtype, encoding=tfds.features.Encoding.BYTES)


class Stored:
    """A finite split: `stored[indices]` is a batch. Up to IN_MEMORY it is loaded whole (20,000 rows/s)."""

    def __init__(self, task: Task, source: Any, size: int):
        self._task, self._source = task, source
        self._columns = self._load(np.arange(len(source))) if size <= IN_MEMORY else None

    def _load(self, indices: np.ndarray) -> Batch:
        rows = self._source.__getitems__(indices.tolist())
        columns = {}
        for name, first in rows[0].items():
            values = [row[name] for row in rows]
            columns[name] = np.array(values, object) if isinstance(first, bytes) else np.stack(values)
        return columns

    def __len__(self) -> int:
        return len(self._source)

    def columns(self, indices: np.ndarray | None = None) -> Batch:
        """The records as stored, one array per field; all of them without `indices`."""
        indices = np.arange(len(self)) if indices is None else indices
        if self._columns is None:
            return self._load(indices)
        return {name: column[indices] for name, column in self._columns.items()}

    def __getitem__(self, indices: np.ndarray) -> Batch:
        return self._task.collate(self.columns(indices))

    def all(self) -> Batch:
        """The whole split as one batch."""
        return self[np.arange(len(self))]


def read(task: Task, split: Split, directory: Path) -> Stored:
    """A finite split, written under `directory` first where it is not there yet.

    BadInput: an endless or empty split, a directory that cannot be written, a stored split that cannot be
    read.
    """
    if split not in SPLITS:
        raise unknown("split", split, SPLITS)
    if split == "train" and task.endless:
        raise BadInput(f"{task.name}: the {split} split is endless; only finite splits are stored.")
    return _read(task, split, absolute(directory), task.fingerprint())


@functools.lru_cache(maxsize=16)
def _read(task: Task, split: Split, directory: Path, fingerprint: str) -> Stored:
    there = directory / task.name / f"{split}-{fingerprint}"
    if remote(directory):  # array_record reads files: what the store has is copied, what it lacks made here
        directory = scratch(directory)
    path = directory / task.name / there.name
    if not path.is_dir() and there != path and (there / LAST).exists():
        _copy(there, path)
    if not path.is_dir():
        _write(task, split, directory, path)
    if there != path and not (there / LAST).exists():
        _copy(path, there)
    try:
        builder = tfds.builder_from_directory(path)
        return Stored(task, builder.as_data_source(split), builder.info.splits[split].num_bytes)
    except Exception as error:  # whatever a damaged file makes the library raise
        raise BadInput(
            f"The stored data at {path} cannot be read ({type(error).__name__}); "
            "delete that directory, then run again."
        ) from error


def _copy(source: Path, target: Path) -> None:
    """The files of a split. In a store LAST says that all are there; on a disk one rename does."""
    files = sorted(source.iterdir(), key=lambda file: file.name == LAST)
    with _writable(target):
        if remote(target):
            for file in files:
                (target / file.name).write_bytes(file.read_bytes())
            return
        target.parent.mkdir(parents=True, exist_ok=True)
        half = Path(tempfile.mkdtemp(prefix=".writing-", dir=target.parent))
        for file in files:
            (half / file.name).write_bytes(file.read_bytes())
        with contextlib.suppress(OSError):  # another process was faster, with the same files
            os.rename(half, target)


def _write(task: Task, split: Split, directory: Path, path: Path) -> None:
    with _writable(directory):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=".writing-", dir=path.parent))
    try:
        builder = TaskRows(task, split, directory, data_dir=temporary)  # downloads, where the task does
        with _writable(directory), _quiet():
            builder.download_and_prepare()
        try:
            os.rename(builder.data_dir, path)
        except OSError as error:
            if not path.is_dir():  # else another process was faster, with the same rows
                raise _unwritable(directory, error) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def remembered(
    task: Task, directory: Path, name: str, compute: Callable[[], dict[str, float]]
) -> dict[str, float]:
    """`compute()`, kept as JSON beside the task's splits; a file that cannot be read is computed again."""
    directory = place(directory)
    path = directory / task.name / f"{name}-{task.fingerprint()}.json"
    with contextlib.suppress(OSError, ValueError):
        return json.loads(path.read_text())
    result = compute()
    with _writable(directory):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, json.dumps(result, indent=1))
    return result


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the library's bars and announcements, which speak of downloads where there are none.

    The switches are the process's own, so threads take turns.
    """
    with _turn:
        tfds.disable_progress_bar()
        try:
            with contextlib.redirect_stdout(None):
                yield
        finally:
            tfds.enable_progress_bar()


@contextlib.contextmanager
def _writable(directory: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise _unwritable(directory, error) from error


def _unwritable(directory: Path, error: OSError) -> BadInput:
    cause = error.strerror or error
    return BadInput(f"Data cannot be written under {directory} ({cause}); choose another folder.")
