"""Directories on a disk or in an object store (gs://...), and what is different there.

An object appears whole or not at all, so a write needs no second name; it cannot be appended to or locked,
and what is renamed is copied and deleted. Reading and writing of gs:// goes through gcsfs (the extra `gcs`),
of a checkpoint's arrays through TensorStore.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import tempfile
from pathlib import Path

from etils import epath

from transformer_jax.errors import BadInput

REMOTE = "gs://"


def place(path: str | os.PathLike[str]) -> Path:
    """The path of a directory or file. BadInput where gs:// needs a library that is not there."""
    text = os.fspath(path)
    if not text.startswith(REMOTE):
        return Path(text)
    if importlib.util.find_spec("gcsfs") is None:
        raise BadInput(f"{text} needs gcsfs: pip install gcsfs, or give a directory on a disk.")
    return epath.Path(text)  # type: ignore[return-value]  # has the methods of a Path


def remote(path: os.PathLike[str]) -> bool:
    return os.fspath(path).startswith(REMOTE)


def absolute(path: str | os.PathLike[str]) -> Path:
    """`place`, from the root on a disk."""
    found = place(path)
    return found if remote(found) else found.absolute()


def writable(directory: Path) -> bool:
    """Whether files can be made in a directory that is there; of a store, only the attempt tells."""
    return remote(directory) or os.access(directory, os.W_OK | os.X_OK)


def scratch(directory: Path) -> Path:
    """A directory on this machine's disk that stands for one in a store, the same in every process."""
    name = hashlib.sha256(os.fspath(directory).encode()).hexdigest()[:16]
    return Path(tempfile.gettempdir()) / f"transformer_jax-{os.getuid()}" / name


def write_text(path: Path, text: str) -> None:
    """Whole or not at all: a kill leaves the old file or the new one."""
    if remote(path):
        path.write_text(text)
        return
    half = path.with_name(f".{path.name}.part")
    half.write_text(text)
    os.replace(half, path)
