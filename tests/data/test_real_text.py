"""python_text and imdb: disjoint splits, exact windows, one source for archive and catalogue."""

from __future__ import annotations

import io
import os
import tarfile
from pathlib import Path

import numpy as np
import pytest

from transformer_jax.data import builders, catalogue
from transformer_jax.data.pipeline import evaluation_batches, train_batches
from transformer_jax.data.tasks import Imdb, PythonText, imdb, python_text
from transformer_jax.errors import BadInput

SPLITS = ("train", "validation", "test")


def real_archive():
    """TRANSFORMER_JAX_DATA, or shared/data beside the checkout."""
    folder = os.environ.get("TRANSFORMER_JAX_DATA") or Path(__file__).parents[3] / "shared" / "data"
    return Path(folder) / "aclImdb_v1.tar.gz"


def fake_archive(path, reviews):
    """An archive in the original's layout. reviews: {"train/neg/0_1": b"…"}."""
    with tarfile.open(path, "w:gz") as tar:
        for name, text in {"README": b"read me", "train/unsup/0_0.txt": b"no label", **reviews}.items():
            member = tarfile.TarInfo(f"aclImdb/{name}")
            member.size = len(text)
            tar.addfile(member, io.BytesIO(text))
    return str(path)


@pytest.fixture
def tiny(tmp_path):
    reviews = {}
    for part, count in (("train", 20), ("test", 6)):
        for i in range(count):
            kind, word = ("pos", b"good") if i % 2 else ("neg", b"bad!")
            reviews[f"{part}/{kind}/{i}_5.txt"] = b" %s %s film number %d\n" % (part.encode(), word, i)
    return fake_archive(tmp_path / "tiny.tar.gz", reviews)


def test_splits_of_the_library_are_disjoint_files():
    names = python_text.files(python_text.library())
    parts = {split: [n for n in names if python_text.split_of(n) == split] for split in SPLITS}
    assert sum(map(len, parts.values())) == len(names) == len(set(names)) > 300
    assert "argparse.py" in names and names == sorted(names)
    assert not any("test" in name.split("/") or "site-packages" in name or "\\" in name for name in names)
    for split, files in parts.items():
        text = python_text.corpus()[split].tobytes()
        assert text.count(b"\0") >= len(files) and text.endswith(b"\0")
        expected = b"".join((python_text.library() / name).read_bytes() + b"\0" for name in files)
        assert text == expected
    sizes = {split: len(text) for split, text in python_text.corpus().items()}
    assert sizes["train"] > 5_000_000 and min(sizes["validation"], sizes["test"]) > 100_000


def test_a_file_stays_in_its_split():
    assert [python_text.split_of(name) for name in ("argparse.py", "a.py", "b.py")] == [
        "train",
        "train",
        "train",
    ]
    shares = np.unique([python_text.split_of(f"{i}.py") for i in range(4000)], return_counts=True)[1] / 4000
    np.testing.assert_allclose(shares, [0.05, 0.90, 0.05], atol=0.015)  # test, train, validation


def test_windows_predict_every_byte_once(tmp_path):
    task = PythonText(length=1000)
    text = python_text.corpus()["test"]
    batches = list(evaluation_batches(task, "test", batch=64, directory=tmp_path))
    scored = np.concatenate([batch["targets"][batch["weights"] > 0] for batch in batches])
    np.testing.assert_array_equal(scored, text[1 : task.examples_in("test") * 1000 + 1])
    assert len(text) - len(scored) <= 1000
    np.testing.assert_array_equal(batches[0]["inputs"][0, 1:], batches[0]["targets"][0, :-1])
    assert batches[0]["inputs"][1, 0] == batches[0]["targets"][0, -1]
    assert task.metric == "bits_per_byte" and task.vocabulary == task.outputs == 256


def test_training_windows_are_the_training_text(tmp_path):
    task = PythonText(length=2000)
    batch = next(train_batches(task, batch=4, seed=0, directory=tmp_path))
    train = python_text.corpus()["train"].tobytes()
    for inputs, targets in zip(batch["inputs"], batch["targets"], strict=True):
        assert train.find(bytes(inputs.astype(np.uint8)) + bytes(targets[-1:].astype(np.uint8))) % 2000 == 0


def test_baselines_of_python_text_are_in_their_natural_order(tmp_path):
    bits = PythonText().baselines(tmp_path)
    assert bits["uniform"] == 8.0
    assert 1 < bits["lzma"] < bits["gzip"] < bits["bigram"] < bits["unigram"] < 5.5


def test_the_fingerprint_knows_the_text(monkeypatch):
    before = PythonText().fingerprint()
    changed = {split: text[:-1] for split, text in python_text.corpus().items()}
    monkeypatch.setattr(python_text, "corpus", lambda: changed)
    assert PythonText().fingerprint() != before


def test_python_text_refuses_what_it_cannot_do(tmp_path, monkeypatch):
    with pytest.raises(BadInput, match="too few for a window of length 100000000; choose a smaller"):
        PythonText(length=100_000_000).examples_in("train")
    with pytest.raises(BadInput, match=r"no \.py files .* installed with its sources"):
        python_text.corpus(tmp_path)
    (tmp_path / "gone.py").symlink_to(tmp_path / "nowhere")
    with pytest.raises(BadInput, match=r"cannot read .*gone\.py .*make it readable"):
        python_text.corpus(tmp_path)


@pytest.mark.quick
def test_reviews_become_padded_bytes(tiny, tmp_path):
    task = Imdb(length=30, archive=tiny)
    assert [task.examples_in(split) for split in SPLITS] == [18, 2, 6]
    texts = {}
    for split in SPLITS:
        [batch] = evaluation_batches(task, split, batch=task.examples_in(split), directory=tmp_path)
        assert batch["inputs"].shape == (task.examples_in(split), 30) and (batch["weights"] == 1).all()
        rows = zip(batch["inputs"], batch["lengths"], batch["targets"], strict=True)
        texts[split] = [(bytes(row[:size].astype(np.uint8)), int(label)) for row, size, label in rows]
        assert all(
            (row[size:] == 256).all() for row, size in zip(batch["inputs"], batch["lengths"], strict=True)
        )
    assert not set(texts["train"]) & set(texts["validation"])
    expected = [(b"train %s film number %d" % (b"good" if i % 2 else b"bad!", i), i % 2) for i in range(20)]
    assert sorted(texts["train"] + texts["validation"]) == sorted(expected)
    assert all(text.startswith(b"test") for text, _ in texts["test"])
    assert task.vocabulary == 257 and task.outputs == 2 and task.target == "sequence" and not task.causal


@pytest.mark.quick
def test_long_reviews_are_cut_and_bytes_beyond_ascii_survive(tmp_path):
    reviews = {
        f"{part}/{kind}/{i}_1.txt": "naïve – très".encode() + b"%d" % i
        for part in ("train", "test")
        for kind in ("pos", "neg")
        for i in range(5)
    }
    task = Imdb(length=4, archive=fake_archive(tmp_path / "a.tar.gz", reviews))
    batch = next(train_batches(task, batch=3, seed=0, directory=tmp_path))
    assert (batch["inputs"] == list("naï".encode())).all() and (batch["lengths"] == 4).all()


@pytest.mark.quick
def test_fewer_test_reviews_are_the_first_of_all(tiny, tmp_path):
    few, every = Imdb(length=30, archive=tiny, test_examples=6), Imdb(length=30, archive=tiny)
    assert few.examples_in("test") == 6 and few.examples_in("train") == every.examples_in("train")
    assert list(few.rows("test", tmp_path)) == list(every.rows("test", tmp_path))[:6]
    assert Imdb(archive=tiny, test_examples=10**6).examples_in("test") == every.examples_in("test")
    with pytest.raises(BadInput, match="at least 1"):
        Imdb(test_examples=0)


@pytest.mark.quick
def test_the_archive_counts_by_its_content(tiny, tmp_path):
    moved = tmp_path / "moved.tar.gz"
    moved.write_bytes(Path(tiny).read_bytes())
    assert Imdb(archive=tiny).fingerprint() == Imdb(archive=str(moved)).fingerprint() != Imdb().fingerprint()


@pytest.mark.quick
def test_baselines_of_reviews(tiny, tmp_path):
    assert Imdb(length=64, archive=tiny).baselines(tmp_path) == {
        "chance": 0.5,
        "majority": 0.5,
        "naive Bayes of bytes": 1.0,
    }


@pytest.mark.quick
def test_the_catalogue_is_read_without_a_download_in_its_mock(tmp_path, monkeypatch):
    tfds = pytest.importorskip("tensorflow_datasets")
    monkeypatch.setattr(catalogue, "reach", lambda url: None)
    imdb.catalogue_reviews.cache_clear()
    catalogue.prepared.cache_clear()
    with tfds.testing.mock_data(num_examples=20, mock_array_record_data_source=None):
        rows = list(Imdb(length=32).rows("train", tmp_path))
    imdb.catalogue_reviews.cache_clear()
    catalogue.prepared.cache_clear()
    assert len(rows) == 18
    assert all(isinstance(row["text"], bytes) and row["label"] in (0, 1) for row in rows)
    assert [Imdb().examples_in(split) for split in SPLITS] == [22_500, 2_500, 25_000]


@pytest.mark.quick
def test_imdb_refuses_what_it_cannot_read(tiny, tmp_path, monkeypatch):
    with pytest.raises(BadInput, match="no archive at .*; give the path"):
        Imdb(archive=str(tmp_path / "nowhere.tar.gz"))
    broken = tmp_path / "broken.tar.gz"
    broken.write_bytes(Path(tiny).read_bytes()[:200])
    with pytest.raises(BadInput, match="cannot be read as a tar archive"):
        builders.read(Imdb(archive=str(broken)), "train", tmp_path)
    with pytest.raises(BadInput, match="holds no train reviews"):
        builders.read(Imdb(archive=fake_archive(tmp_path / "none.tar.gz", {})), "train", tmp_path)
    empty = fake_archive(tmp_path / "empty.tar.gz", {"train/neg/0_1.txt": b" \n"})
    with pytest.raises(BadInput, match=r"train/neg/0_1\.txt .* is empty"):
        builders.read(Imdb(archive=empty), "train", tmp_path)

    def no_network(url):
        raise OSError("unreachable")

    monkeypatch.setattr(catalogue, "reach", no_network)
    imdb.catalogue_reviews.cache_clear()
    catalogue.prepared.cache_clear()
    with pytest.raises(BadInput, match="download failed .* point task.archive at"):
        builders.read(Imdb(), "train", tmp_path)


@pytest.mark.skipif(
    not real_archive().is_file(),
    reason="aclImdb_v1.tar.gz is neither beside the checkout nor in "
    "the folder that TRANSFORMER_JAX_DATA names",
)
def test_the_real_reviews(tmp_path):
    task = Imdb(length=1024, archive=str(real_archive()))
    assert [task.examples_in(split) for split in SPLITS] == [22_500, 2_500, 25_000]
    batches = list(evaluation_batches(task, "validation", batch=250, directory=tmp_path))
    labels = np.concatenate([batch["targets"] for batch in batches])
    lengths = np.concatenate([batch["lengths"] for batch in batches])
    assert len(labels) == 2500 and 0.45 < labels.mean() < 0.55
    assert lengths.min() > 20 and lengths.max() == 1024 and 700 < lengths.mean() < 1000
    train = {text for text, _ in imdb.archive_reviews(str(real_archive()))["train"][2500:]}
    held_out = {text for text, _ in imdb.archive_reviews(str(real_archive()))["train"][:2500]}
    assert not train & held_out
