"""Directories on a disk or in an object store (gs://...), and what is different there.

An object appears whole or not at all, so a write needs no second name; it cannot be appended to or locked,
and what is renamed is copied and deleted. Reading and writing of gs:// goes through gcsfs (the extra `gcs`),
of a checkpoint's arrays through TensorStore.
"""

from __future__ import annotations

import hashlib
import importlib.util
import logging
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
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


def reach(*directories: Path) -> None:
    """Raises BadInput where a directory is in a store that does not answer this process, or not this account.

    It may be that it is not there yet; whether it can be written, only the attempt tells.
    """
    for directory in filter(remote, directories):
        with _quiet():
            try:
                directory.exists()
            except Exception as error:  # gcsfs, aiohttp and google.auth have each their own
                raise BadInput(
                    f"Cannot reach {directory} ({_line(error)}): check the name of its bucket, the network, "
                    f"and which account this machine has (gcloud auth application-default login)."
                ) from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the traceback that gcsfs logs of what it also raises."""
    logger = logging.getLogger("gcsfs")
    before = logger.level
    logger.setLevel(logging.CRITICAL + 1)
    try:
        yield
    finally:
        logger.setLevel(before)


def _line(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"


def scratch(directory: Path) -> Path:
    """A directory on this machine's disk that stands for one in a store, the same in every process."""
    name = hashlib.sha256(os.fspath(directory).encode()).hexdigest()[:16]
    return Path(tempfile.gettempdir()) / f"transformer_jax-{os.getuid()}" / name


def write_text(path: Path, text: str) -> None:
    """Whole or not at all: a kill leaves the old file or the new one.

    Raises BadInput where a store has no such bucket, or does not let this account write to it.
    """
    if remote(path):
        try:
            path.write_text(text)
        except OSError as error:
            if isinstance(error, FileNotFoundError) or "Forbidden" in str(error):
                raise BadInput(
                    f"Cannot write {path} ({_line(error)}): check that its bucket is there and that this "
                    f"account may write to it."
                ) from error
            raise
        return
    half = path.with_name(f".{path.name}.part")
    half.write_text(text)
    os.replace(half, path)
