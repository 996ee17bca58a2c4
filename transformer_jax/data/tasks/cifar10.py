"""CIFAR-10 in grey, read pixel by pixel."""

from __future__ import annotations

import functools
import io
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np

from transformer_jax.data import catalogue
from transformer_jax.data.archive import Parts, in_order, members, split_of
from transformer_jax.data.task import SPLITS, Batch, Split, Task
from transformer_jax.errors import BadInput, unknown

CLASSES = "airplane automobile bird cat deer dog frog horse ship truck".split()
MEMBER = re.compile(rf"(?:\./)?[^/]+/(train|test)/({'|'.join(CLASSES)})/[^/]+\.(?:jpg|png)")
GREY = np.array([0.2989, 0.5870, 0.1140])  # ITU-R BT.601, as TensorFlow and so the original has it
IMAGES = "images (train/airplane, …, test/airplane, …)"


@dataclass(frozen=True, kw_only=True)
class Cifar10(Task):
    """CIFAR-10 (Krizhevsky 2009) as 1,024 grey pixels of 256 values, row by row (arXiv 2011.04006 "Image").

    The original takes the last tenth of the training images for validation; here it is the tenth with the
    smallest sha256 (45,000 / 5,000 / 10,000), and the test split serves only the final score. That hash also
    gives the order.

    length: 1024; or 256 or 64, the means of 2 × 2 or 4 × 4 pixels, for a first try.
    test_examples: score the first so many test images of that order, a fair sample; None: all.
    archive: a tar file of images in folders train/CLASS and test/CLASS; None takes the catalogue's cifar10,
      which downloads it. One of JPEG files is not bit-identical to the catalogue, and so another data set.
    """

    name: ClassVar[str] = "cifar10"
    target: ClassVar[Literal["token", "sequence"]] = "sequence"
    causal: ClassVar[bool] = False

    length: int = 1024
    test_examples: int | None = None
    archive: str | None = None

    def check(self) -> None:
        if self.length not in (1024, 256, 64):
            raise BadInput(f"cifar10: length is {self.length}; an image has 1024 pixels, or 256 or 64 means.")
        if self.test_examples is not None:
            self.whole("test_examples")
        if self.archive is not None and not Path(self.archive).is_file():
            raise BadInput(
                f"cifar10: there is no archive at {self.archive}; give the path of a tar file of images, or "
                "none to download them."
            )

    @property
    def vocabulary(self) -> int:
        return 256

    @property
    def outputs(self) -> int:
        return len(CLASSES)

    def examples_in(self, split: Split) -> int:
        if split not in SPLITS:
            raise unknown("split", split, SPLITS)
        if self.archive is None:
            count = {"train": 45_000, "validation": 5_000, "test": 10_000}[split]
        else:
            count = len(split_of(archive_images(self.archive), split))
        return min(count, self.test_examples or count) if split == "test" else count

    def rows(self, split: Split, directory: Path) -> Iterator[Mapping[str, Any]]:
        images = archive_images(self.archive) if self.archive else catalogue_images(directory)
        side = round(self.length**0.5)
        for image, label in split_of(images, split)[: self.examples_in(split)]:
            means = image.reshape(side, 32 // side, side, 32 // side).mean(axis=(1, 3))
            yield {"image": np.round(means).astype(np.uint8).reshape(-1), "label": label}

    def collate(self, columns: Batch) -> Batch:
        labels = columns["label"].astype(np.int32)
        return {
            "inputs": columns["image"].astype(np.int32),
            "targets": labels,
            "weights": np.ones(len(labels), np.float32),
        }

    def parameters(self) -> dict[str, Any]:
        """The archive counts by its content, not by its place."""
        return {**super().parameters(), "archive": catalogue.digest(self.archive) if self.archive else None}

    def measure_baselines(self, directory: Path) -> dict[str, float]:
        """The nearest mean: the class whose mean training image is nearest."""
        from transformer_jax.data import builders

        train, test = (builders.read(self, split, directory).columns() for split in ("train", "test"))
        labels = [label for label in range(self.outputs) if (train["label"] == label).any()]
        means = np.stack([train["image"][train["label"] == label].mean(axis=0) for label in labels])
        nearness = test["image"] @ means.T - (means**2).sum(axis=1) / 2
        return {
            "chance": 1 / self.outputs,
            "majority": float(np.mean(test["label"] == np.bincount(train["label"]).argmax())),
            "nearest mean": float(np.mean(test["label"] == np.array(labels)[nearness.argmax(axis=1)])),
        }


def grey(image: np.ndarray) -> np.ndarray:
    """(32, 32, 3) uint8 to (32, 32) uint8."""
    return np.round(image @ GREY).astype(np.uint8)


@functools.lru_cache(maxsize=1)
def archive_images(archive: str) -> Parts[np.ndarray]:
    """The images of an archive, grey."""
    import PIL.Image

    images: Parts[np.ndarray] = {"train": [], "test": []}
    for match, content in members(archive, MEMBER, "cifar10"):
        try:
            image = np.asarray(PIL.Image.open(io.BytesIO(content)).convert("RGB"))
        except OSError as error:
            raise BadInput(f"cifar10: {match[0]} in {archive} is no image ({error}); get it anew.") from None
        if image.shape != (32, 32, 3):
            raise BadInput(f"cifar10: {match[0]} in {archive} is not of 32 × 32 pixels.")
        images[match[1]].append((grey(image), CLASSES.index(match[2])))
    return in_order(images, f"cifar10: {archive}", IMAGES)


@functools.lru_cache(maxsize=1)
def catalogue_images(directory: Path) -> Parts[np.ndarray]:
    """The images of the catalogue's cifar10, grey."""
    otherwise = "point task.archive at a tar file of the images"
    images = {
        part: [
            (grey(row["image"]), int(row["label"]))
            for row in catalogue.records("cifar10", part, directory, otherwise)
        ]
        for part in ("train", "test")
    }
    return in_order(images, "cifar10: the catalogue's cifar10", IMAGES)
