"""Labelled examples from a tar archive or the catalogue, a tenth of the training part held out by a hash."""

from __future__ import annotations

import hashlib
import re
import tarfile
from collections.abc import Iterator
from typing import Any, TypeVar

from transformer_jax.data.task import Split
from transformer_jax.errors import BadInput

Content = TypeVar("Content")
Parts = dict[str, list[tuple[Content, int]]]
"""Of "train" and "test": the examples, each with its label."""


def members(archive: str, pattern: re.Pattern[str], task: str) -> Iterator[tuple[re.Match[str], bytes]]:
    """The files of an archive whose names match, with their contents. BadInput where it cannot be read."""
    try:
        with tarfile.open(archive, mode="r|*") as tar:
            for member in tar:
                match = pattern.fullmatch(member.name)
                file = tar.extractfile(member) if match else None
                if match and file:
                    yield match, file.read()
    except (tarfile.TarError, OSError, EOFError) as error:
        raise BadInput(f"{task}: {archive} cannot be read as a tar archive ({error}); get it anew.") from None


def in_order(parts: Parts[Any], where: str, what: str) -> Parts[Any]:
    """Each part sorted by the hash of the content, so that its order does not depend on where it came from.

    BadInput, with `where` it came from and `what` it lacks, where a part has no examples.
    """
    for part, examples in parts.items():
        if not examples:
            raise BadInput(f"{where} holds no {part} {what}; get it anew.")
        examples.sort(key=lambda example: (hashlib.sha256(example[0]).digest(), example[1]))
    return parts


def split_of(parts: Parts[Content], split: Split) -> list[tuple[Content, int]]:
    """The test part; or the first tenth of the training part for validation, and the rest for training."""
    held_out = len(parts["train"]) // 10
    return {
        "train": parts["train"][held_out:],
        "validation": parts["train"][:held_out],
        "test": parts["test"],
    }[split]
