"""Byte-level language modelling on the sources of the running interpreter's standard library."""

from __future__ import annotations

import functools
import hashlib
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from transformer_jax.data import baselines
from transformer_jax.data.task import SPLITS, Split
from transformer_jax.data.text import Text
from transformer_jax.errors import BadInput, unknown

# Left out: installed packages, which are not the library; tests, which distributions often leave out;
# character tables, near-copies of one another that would lie in several splits; the manual, one file that
# would outweigh the rest of its split; build settings, which name the machine.
EXCLUDED_FOLDERS = {"site-packages", "dist-packages", "test", "tests", "idle_test", "encodings", "pydoc_data"}
EXCLUDED_PREFIXES = ("_sysconfigdata", "config-")


@dataclass(frozen=True, kw_only=True)
class PythonText(Text):
    """Real text that every machine has, without a download: about 10 MB of Python.

    Files go whole to train, validation or test (90 : 5 : 5) by a hash of their path within the library, and
    follow one another in the order of that path. The text is that of the interpreter's version and its hash
    is in the fingerprint: compare scores within one version only.
    """

    name: ClassVar[str] = "python_text"

    def examples_in(self, split: Split) -> int:
        if split not in SPLITS:
            raise unknown("split", split, SPLITS)
        text = corpus()[split]
        if len(text) <= self.length:
            raise BadInput(
                f"python_text: the {split} split has {len(text)} bytes, too few for a window of length "
                f"{self.length}; choose a smaller length."
            )
        return (len(text) - 1) // self.length

    def documents(self, split: Split, directory: Path) -> Iterator[bytes]:
        yield corpus()[split][:-1].tobytes()  # a zero byte ends it already

    def parameters(self) -> dict[str, Any]:
        digests = {split: hashlib.sha256(text.tobytes()).hexdigest() for split, text in corpus().items()}
        return {**super().parameters(), "text": digests}

    def measure_baselines(self, directory: Path) -> dict[str, float]:
        """Bits per byte on the test split; the compressors see that split alone."""
        return baselines.of_bytes(corpus()["train"], corpus()["test"])


def split_of(name: str) -> Split:
    """The split of a file, from its path within the library (with forward slashes)."""
    share = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") / 2**64
    return "test" if share < 0.05 else "validation" if share < 0.10 else "train"


def library() -> Path:
    """The folder of the running interpreter's standard library."""
    return Path(sysconfig.get_path("stdlib"))


def files(folder: Path) -> list[str]:
    """The paths within `folder` of the sources that are used, sorted."""
    names = []
    for path in folder.rglob("*.py"):
        parts = path.relative_to(folder).parts
        if EXCLUDED_FOLDERS.isdisjoint(parts) and not any(
            part.startswith(EXCLUDED_PREFIXES) for part in parts
        ):
            names.append("/".join(parts))
    return sorted(names)


@functools.cache
def corpus(folder: Path | None = None) -> dict[Split, np.ndarray]:
    """The text of each split, uint8. BadInput where there are no sources or one cannot be read."""
    folder = folder or library()
    texts: dict[Split, list[bytes]] = {"train": [], "validation": [], "test": []}
    for name in files(folder):
        try:
            texts[split_of(name)] += [(folder / name).read_bytes(), b"\0"]
        except OSError as error:
            raise BadInput(
                f"python_text cannot read {folder / name} ({error.strerror}); make it readable."
            ) from None
    if not texts["train"]:
        raise BadInput(
            f"python_text finds no .py files in this interpreter's standard library ({folder}); "
            "use a Python that is installed with its sources."
        )
    return {split: np.frombuffer(b"".join(parts), np.uint8) for split, parts in texts.items()}
