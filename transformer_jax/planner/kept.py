"""Plans that were made are kept: the TPU compiler's own cache cannot be read without a TPU."""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import json
import os
from collections.abc import Callable
from pathlib import Path

import transformer_jax
from transformer_jax.planner.plan import Plan
from transformer_jax.store import write_text
from transformer_jax.train.run import Run, resolved, user_files
from transformer_jax.train.step import FREE

LIBRARIES = ("jax", "jaxlib", "libtpu", "flax", "optax", "numpy")


def kept(run: Run, label: str, topology: str, make: Callable[[], Plan]) -> Plan:
    """The plan of a run on a slice: that of an earlier call with this configuration, the same versions and
    the same code, or else one that `make` makes now."""
    file = folder() / f"{key(run, label, topology)}.json"
    try:
        return Plan.of(json.loads(file.read_text()))
    except (OSError, ValueError, TypeError, KeyError):  # none, or one that another version wrote
        pass
    made = make()
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_text(file, json.dumps(made.fields()))
    except OSError:  # where nothing can be kept, nothing is
        pass
    return made


def key(run: Run, label: str, topology: str) -> str:
    """A hash of whatever a plan depends on."""
    settings = resolved(run)
    settings["train"] = {name: value for name, value in settings["train"].items() if name not in FREE}
    settings.pop("seed")
    files = {name: Path(file).read_text() for name, file in user_files(run).items()}
    versions = {name: importlib.metadata.version(name) for name in LIBRARIES}
    everything = [settings, label, topology, files, versions, _code()]
    return hashlib.sha256(json.dumps(everything, sort_keys=True, default=str).encode()).hexdigest()[:32]


def folder() -> Path:
    """Where plans are kept: below $XDG_CACHE_HOME, or ~/.cache."""
    above = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    return Path(above) / "transformer_jax" / "plans"


@functools.cache
def _code() -> str:
    """A hash of this package's own source: a plan of a program that has changed is another plan."""
    found = hashlib.sha256()
    root = Path(transformer_jax.__file__).parent
    for file in sorted(root.rglob("*.py")):
        found.update(str(file.relative_to(root)).encode() + file.read_bytes())
    return found.hexdigest()
