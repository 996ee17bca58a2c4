"""One run: what is trained, on what, how, from which seed; and the record that says so beside the results."""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.metadata
import json
import os
import platform
import subprocess
import types
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Union, get_args, get_origin

import jax
from filelock import FileLock, Timeout
from flax import nnx

import transformer_jax
from transformer_jax.attention import catalogue
from transformer_jax.data.task import Task
from transformer_jax.data.tasks import task_class
from transformer_jax.errors import BadInput, unknown
from transformer_jax.model.config import Transformer
from transformer_jax.model.transformer import Model
from transformer_jax.overrides import differences, fields, require
from transformer_jax.store import place, remote, writable, write_text
from transformer_jax.train.config import Train

CONFIG = "config.json"
ELSEWHERE = ("train.mesh", "train.profile", "model.execution")
"""The settings that say where and by what a run is computed, not what it is: it may go on on another mesh."""


@dataclass(frozen=True, kw_only=True)
class Run:
    """A task, a model, a recipe and the seed of parameters, data order and dropout."""

    task: Task
    model: Transformer
    train: Train
    seed: int = 0

    def __post_init__(self):
        require("seed", int, self.seed)
        if not 0 <= self.seed < 2**31:
            raise BadInput(f"seed={self.seed} must be at least 0 and below 2**31.")


def build_model(run: Run, key: jax.Array | None = None) -> nnx.Module:
    """The untrained model of a run, sized by its task; drawn from `key` in the place of its seed."""
    return Model(
        run.model,
        vocabulary=run.task.vocabulary,
        outputs=run.task.outputs,
        target=run.task.target,
        causal=run.task.causal,
        length=run.task.longest,
        features=run.task.features,
        rngs=nnx.Rngs(jax.random.key(run.seed) if key is None else key),
    )


def resolved(run: Run) -> dict[str, Any]:
    """Every setting of a run, defaults included, as JSON values."""
    task = {"name": run.task.name, "version": run.task.version, **_json(run.task)}
    return {"task": task, "model": _json(run.model), "train": _json(run.train), "seed": run.seed}


def digest(run: Run) -> str:
    """A hash of the settings. A source outside the program enters by its content, not by its path; those of
    `ELSEWHERE` do not enter."""
    settings = {**resolved(run), "task": run.task.parameters()}
    for name in ELSEWHERE:
        part, field = name.split(".")
        settings[part].pop(field, None)
    text = json.dumps(settings, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:20]


def load_run(path: Path) -> Run:
    """The run whose results are in the directory `path`. Raises BadInput where its record does not fit."""
    record = _read_config(path)
    settings = dict(record["config"])
    if settings.keys() != {"task", "model", "train", "seed"}:
        raise BadInput(
            f"{place(path) / CONFIG} is not the record of a run: give a directory that `run` wrote."
        )
    task = dict(settings["task"])
    kind, version = task_class(task.pop("name")), task.pop("version")
    if version != kind.version:
        raise BadInput(
            f"{path} was trained on version {version} of {kind.name}, which is now at {kind.version} and "
            f"gives other examples: train it again."
        )
    for name, file in record.get("files", {}).items():
        if name not in catalogue.catalogue():
            if not Path(file).is_file():
                raise BadInput(
                    f"{path} was trained with the mechanism {name!r} of {file}, which is gone: put it back."
                )
            catalogue.named(f"{file}:{name}")
    return Run(
        task=_built(kind, task, "task"),
        model=_built(Transformer, settings["model"], "model"),
        train=_built(Train, settings["train"], "train"),
        seed=settings["seed"],
    )


def user_files(run: Run) -> dict[str, str]:
    """The user's own mechanisms of a run, by name, and the files that define them."""
    names = {mechanism.name for mechanism in getattr(run.model, "mixers", ())}
    files = {name: catalogue.file_of(name) for name in sorted(names)}
    return {name: str(file) for name, file in files.items() if file is not None}


# The record of a run directory.


def claim(run: Run, out: Path, *, label: str = "", command: str | None = None) -> dict[str, Any]:
    """Makes `out` the directory of this run, or checks that it is; returns its config.json.

    Raises BadInput, and writes nothing, where `out` cannot be written or belongs to another run.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BadInput(
            f"Cannot make the directory {out} ({error.strerror}): choose another output directory."
        ) from error
    if not writable(out):
        raise BadInput(f"Cannot write to {out}: choose another output directory, or change its permissions.")
    if (out / CONFIG).exists():
        stored = _read_config(out)
        if stored["digest"] != digest(run):
            now = json.loads(json.dumps(resolved(run)))
            changed = ", ".join(
                f"{name} is {json.dumps(old)} there and {json.dumps(new)} here"
                for name, old, new in differences(stored["config"], now)
                if not name.startswith(ELSEWHERE)
            )
            raise BadInput(
                f"{out} holds results of another configuration ({changed or 'other data'}): choose another "
                f"output directory, or move that one away."
            )
        return stored
    record: dict[str, Any] = {
        "label": label,
        "digest": digest(run),
        "config": resolved(run),
        "versions": versions(),
        "device": device(),
        "seed": run.seed,
    }
    if files := user_files(run):
        record["files"] = files
    if command is not None:
        record["command"] = command
    write_json(out / CONFIG, record)
    return record


@contextmanager
def alone(out: Path) -> Iterator[None]:
    """Keeps other processes out of the directory of a run; the system lets go of it however this one ends.

    A store has no such locks: there it is for the launcher to start a run once (each form of `launch` does).
    """
    if remote(out):
        yield
        return
    lock = FileLock(out / ".lock", timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise BadInput(
            f"Another process is training in {out}: wait until it ends, or choose another output directory."
        ) from None
    try:
        yield
    finally:
        lock.release()


def versions() -> dict[str, str]:
    """Of what decides the numbers: Python, the libraries, this package and its git commit."""
    libraries = {
        name: importlib.metadata.version(name) for name in ("jax", "jaxlib", "flax", "optax", "numpy")
    }
    found = {"python": platform.python_version(), **libraries, "transformer_jax": _own_version()}
    commit = _commit()
    return {**found, "commit": commit} if commit else found


def device() -> dict[str, Any]:
    """What computes: platform, kind and count of devices, processes, CPU cores."""
    first = jax.devices()[0]
    return {
        "platform": first.platform,
        "kind": first.device_kind,
        "count": jax.device_count(),
        "processes": jax.process_count(),
        # Those that it may use: a scheduler, or taskset, gives a part.
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
    }


def write_json(path: Path, value: Any) -> None:
    """Whole or not at all: a kill leaves the old file or the new one."""
    write_text(path, json.dumps(value, indent=1, allow_nan=False) + "\n")


def _read_config(path: Path) -> dict[str, Any]:
    file = place(path) / CONFIG
    try:
        record = json.loads(file.read_text())
        if isinstance(record, dict) and {"digest", "config"} <= record.keys():
            return record
    except FileNotFoundError:
        raise BadInput(
            f"{path} is not the directory of a run, for it has no {CONFIG}: give one of those under cells/ "
            f"in the directory of an experiment."
        ) from None
    except (OSError, ValueError):
        pass
    raise BadInput(f"{file} cannot be read: move {path} away, or restore the file.")


def _own_version() -> str:
    try:
        return importlib.metadata.version("transformer_jax")
    except importlib.metadata.PackageNotFoundError:
        return getattr(transformer_jax, "__version__", "unknown")


@cache
def _commit() -> str | None:
    """The commit of this package's own checkout, whose code was imported: what is committed while a process
    runs does not change it. Nothing where it is installed elsewhere."""
    here = Path(transformer_jax.__file__).resolve().parent
    if not (here.parent / ".git").exists():
        return None
    try:
        ask = ["git", "-C", str(here), "describe", "--always", "--dirty", "--abbrev=12"]
        return (
            subprocess.run(ask, capture_output=True, text=True, timeout=10, check=True).stdout.strip() or None
        )
    except (OSError, subprocess.SubprocessError):
        return None


# Dataclasses to JSON values and back.


def _json(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        return {name: _json(getattr(value, name)) for name in fields(value)}
    if isinstance(value, list | tuple):
        return [_json(item) for item in value]
    if isinstance(value, Mapping):
        return {str(key): _json(item) for key, item in value.items()}
    return str(value) if isinstance(value, Path) else value


def _built(kind: type, values: Mapping[str, Any], part: str) -> Any:
    known = fields(kind)
    for name in values:
        if name not in known:
            raise unknown("setting", f"{part}.{name}", [f"{part}.{field}" for field in known])
    return kind(**{name: _value(known[name], value, f"{part}.{name}") for name, value in values.items()})


def _value(kind: Any, value: Any, name: str) -> Any:
    """The value of type `kind` that JSON `value` stands for."""
    if get_origin(kind) in (Union, types.UnionType):
        if value is None:
            return None
        (kind, *others) = (member for member in get_args(kind) if member is not type(None))
        return value if others else _value(kind, value, name)
    if isinstance(kind, type) and dataclasses.is_dataclass(kind) and isinstance(value, Mapping):
        return _built(kind, value, name)
    if get_origin(kind) is tuple and isinstance(value, list):
        members = get_args(kind)
        if members[1:] == (...,):
            members = (members[0],) * len(value)
        return tuple(_value(member, item, name) for member, item in zip(members, value, strict=True))
    if kind is Any and isinstance(value, list):
        return tuple(_value(Any, item, name) for item in value)
    return place(value) if kind is Path and value is not None else value
