"""CIFAR-10: grey, carved, in one order; from an archive and from the catalogue."""

from __future__ import annotations

import io
import os
import tarfile
from pathlib import Path

import numpy as np
import pytest

from transformer_jax.data import builders, catalogue
from transformer_jax.data.pipeline import evaluation_batches
from transformer_jax.data.tasks import Cifar10, cifar10
from transformer_jax.errors import BadInput

SPLITS = ("train", "validation", "test")


def real_archive():
    """TRANSFORMER_JAX_DATA, or shared/data beside the checkout."""
    folder = os.environ.get("TRANSFORMER_JAX_DATA") or Path(__file__).parents[3] / "shared" / "data"
    return Path(folder) / "CIFAR-10-images.tar.gz"


@pytest.fixture
def tiny(tmp_path):
    """Twenty training images and four of the test, each of one colour that names its class and number."""
    import PIL.Image

    path = tmp_path / "tiny.tar.gz"
    with tarfile.open(path, "w:gz") as tar:
        for part, count in (("train", 20), ("test", 4)):
            for i in range(count):
                kind, number = ("cat", "ship")[i % 2], i // 2
                image = np.full((32, 32, 3), (5 * number, 0, 200 * (i % 2)), np.uint8)
                image[0, 0] = 255 if part == "test" else 0
                file = io.BytesIO()
                PIL.Image.fromarray(image).save(file, "PNG")
                member = tarfile.TarInfo(f"images/{part}/{kind}/{i:04}.png")
                member.size = file.getbuffer().nbytes
                file.seek(0)
                tar.addfile(member, file)
        tar.addfile(tarfile.TarInfo("images/README.md"))
    return str(path)


@pytest.mark.quick
def test_grey_is_the_weighted_sum():
    colours = np.array([[[255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 255]]], np.uint8)
    assert cifar10.grey(colours).tolist() == [[76, 150, 29, 255]]


@pytest.mark.quick
def test_images_become_pixels_and_splits_are_disjoint(tiny, tmp_path):
    task = Cifar10(archive=tiny)
    assert [task.examples_in(split) for split in SPLITS] == [18, 2, 4]
    seen = []
    for split in SPLITS:
        [batch] = evaluation_batches(task, split, batch=task.examples_in(split), directory=tmp_path)
        assert batch["inputs"].shape == (task.examples_in(split), 1024)
        assert (batch["inputs"][:, 0] == (255 if split == "test" else 0)).all()
        assert set(batch["targets"]) <= {cifar10.CLASSES.index("cat"), cifar10.CLASSES.index("ship")}
        blue = batch["targets"] == cifar10.CLASSES.index("ship")
        assert ((batch["inputs"][:, 5] > 20) == blue).all()
        seen += [(*row, label) for row, label in zip(batch["inputs"], batch["targets"], strict=True)]
    assert len(set(seen)) == 24
    assert task.vocabulary == 256 and task.outputs == 10 and not task.causal and task.target == "sequence"
    assert task.baselines(tmp_path) == {"chance": 0.1, "majority": 0.5, "nearest mean": 1.0}


@pytest.mark.quick
def test_smaller_images_are_means(tiny, tmp_path):
    small, large = (
        builders.read(Cifar10(archive=tiny, length=n), "test", tmp_path).all() for n in (64, 1024)
    )
    means = large["inputs"].reshape(-1, 8, 4, 8, 4).mean(axis=(2, 4)).reshape(-1, 64)
    assert np.abs(small["inputs"] - means).max() <= 0.5


@pytest.mark.quick
def test_the_catalogue_is_read_without_a_download_in_its_mock(tmp_path, monkeypatch):
    tfds = pytest.importorskip("tensorflow_datasets")
    monkeypatch.setattr(catalogue, "reach", lambda url: None)
    for cached in (catalogue.prepared, cifar10.catalogue_images):
        cached.cache_clear()
    with tfds.testing.mock_data(num_examples=20, mock_array_record_data_source=None):
        rows = list(Cifar10().rows("train", tmp_path))
    for cached in (catalogue.prepared, cifar10.catalogue_images):
        cached.cache_clear()
    assert len(rows) == 18 and {row["image"].shape for row in rows} == {(1024,)}
    assert [Cifar10().examples_in(split) for split in SPLITS] == [45_000, 5_000, 10_000]


@pytest.mark.quick
def test_cifar10_refuses_what_it_cannot_read(tiny, tmp_path, monkeypatch):
    with pytest.raises(BadInput, match="no archive at .*; give the path"):
        Cifar10(archive=str(tmp_path / "nowhere.tar"))
    with pytest.raises(BadInput, match="1024 pixels"):
        Cifar10(length=100)
    broken = tmp_path / "broken.tar.gz"
    broken.write_bytes(Path(tiny).read_bytes()[:200])
    with pytest.raises(BadInput, match="cannot be read as a tar archive"):
        list(Cifar10(archive=str(broken)).rows("train", tmp_path))

    def no_network(url):
        raise OSError("unreachable")

    monkeypatch.setattr(catalogue, "reach", no_network)
    for cached in (catalogue.prepared, cifar10.catalogue_images):
        cached.cache_clear()
    with pytest.raises(BadInput, match="download failed .* point task.archive at"):
        list(Cifar10().rows("train", tmp_path))


@pytest.mark.slow
@pytest.mark.skipif(
    not real_archive().is_file(),
    reason="CIFAR-10-images.tar.gz is neither beside the checkout nor in the folder that "
    "TRANSFORMER_JAX_DATA names",
)
def test_the_real_images(tmp_path):
    task = Cifar10(archive=str(real_archive()))
    assert [task.examples_in(split) for split in SPLITS] == [45_000, 5_000, 10_000]
    labels = np.array([row["label"] for row in task.rows("test", tmp_path)])
    assert np.bincount(labels).tolist() == [1000] * 10
    assert 0.2 < task.baselines(tmp_path)["nearest mean"] < 0.35
