"""Data sets of the TFDS catalogue, prepared once as array_record, without TensorFlow."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from transformer_jax.errors import BadInput


@functools.lru_cache(maxsize=4)
def prepared(name: str, directory: Path, otherwise: str) -> Any:
    """The builder of a catalogue data set, downloaded to directory/tfds at the first use.

    name: as the catalogue has it, "wiki40b/en". otherwise: what else a user can do, for the error.
    Raises BadInput where it cannot be had.
    """
    import tensorflow_datasets as tfds

    # Some are found only once their module is imported, and the error would say that there are none.
    for folder in ("text", "datasets"):
        with contextlib.suppress(ImportError):
            importlib.import_module(f"tensorflow_datasets.{folder}.{name.partition('/')[0]}")
    try:
        builder = tfds.builder(name, data_dir=directory / "tfds", file_format="array_record")
        if not Path(builder.data_dir).is_dir():
            reach(builder.info.homepage)  # or the library retries for minutes where there is no network
            builder.download_and_prepare()
    except Exception as error:  # the library raises whatever its transport raises
        raise BadInput(
            f"{name}: the download failed ({type(error).__name__}); connect to the network, or {otherwise}."
        ) from None
    return builder


def records(name: str, part: str, directory: Path, otherwise: str) -> Iterator[Mapping[str, Any]]:
    """The records of a part ("train", …) of a catalogue data set, in its own order."""
    source = prepared(name, directory, otherwise).as_data_source(part)
    return (source[i] for i in range(len(source)))


def as_bytes(text: bytes | str) -> bytes:
    """The catalogue gives bytes, the library's mock of it strings."""
    return text.encode() if isinstance(text, str) else text


def reach(url: str) -> None:
    """Raises OSError where there is no network."""
    urllib.request.urlopen(url, timeout=20).close()


@functools.lru_cache(maxsize=8)
def digest(file: str) -> str:
    """The sha256 of a file. BadInput where it cannot be read."""
    try:
        with open(file, "rb") as opened:
            return hashlib.file_digest(opened, "sha256").hexdigest()
    except OSError as error:
        raise BadInput(f"{file} cannot be read ({error.strerror}); make it readable.") from None
