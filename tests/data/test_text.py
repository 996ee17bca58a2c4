"""A folder of the user's text, as bytes and as subwords; and the texts of the catalogue."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from transformer_jax.data import builders, catalogue
from transformer_jax.data.tasks import CatalogueText, SubwordFolder, TextFolder
from transformer_jax.errors import BadInput

pytestmark = pytest.mark.quick

SPLITS = ("train", "validation", "test")


@pytest.fixture
def folder(tmp_path):
    """Two files, one in a folder within; their lines repeat few words."""
    words = "the quick brown fox\tjumps over  the lazy dog – naïve".split(" ")
    random = np.random.default_rng(0)
    for name in ("b.txt", "a/one.txt"):
        path = tmp_path / "mine" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = [" ".join(random.choice(words, 6)) for _ in range(300)]
        path.write_text(name + "\n" + "\n".join(lines), encoding="utf-8")
    (tmp_path / "mine" / "picture.png").write_bytes(b"\0\1")
    return str(tmp_path / "mine")


def joined(task, split, directory):
    """The stored windows as one text: each begins with the last token of the one before."""
    rows = builders.read(task, split, directory).columns()["text"]
    np.testing.assert_array_equal(rows[1:, 0], rows[:-1, -1])
    return np.concatenate([rows[:, :-1].reshape(-1), rows[-1, -1:]])


def test_every_byte_of_a_folder_is_in_one_split(folder, tmp_path):
    task, found = TextFolder(folder=folder, length=16), {}
    for split in SPLITS:
        found[split] = joined(task, split, tmp_path).tobytes()
        whole = b"".join(text + b"\0" for text in task.documents(split, tmp_path))
        assert whole.startswith(found[split]) and len(whole) - len(found[split]) < 16
        assert task.examples_in(split) * 16 + 1 == len(found[split])
    for text in task.texts():
        parts = [text[: int(0.9 * len(text))], text[int(0.9 * len(text)) : int(0.95 * len(text))]]
        # What does not fill the last window of a split is in none.
        assert parts[0][:-16] in found["train"] and parts[1][:-16] in found["validation"]
    assert found["train"].startswith(b"a/one.txt") and b"picture" not in found["train"]


def test_a_last_window_that_is_just_full_is_kept(tmp_path):
    (tmp_path / "one.txt").write_bytes(b"x" * 360)  # 324 for training, and the zero byte
    task = TextFolder(folder=str(tmp_path), length=18)
    assert task.examples_in("train") == len(list(task.rows("train", tmp_path))) == 18


def test_a_folder_counts_by_its_content(folder, tmp_path):
    (tmp_path / "mine").rename(tmp_path / "moved")
    moved = TextFolder(folder=str(tmp_path / "moved"))
    (tmp_path / "moved" / "b.txt").write_bytes(b"changed")
    other = TextFolder(folder=str(tmp_path / "moved"), files="b.txt")
    assert len({moved.fingerprint(), other.fingerprint()}) == 2
    bits = dataclasses.replace(moved, length=16).baselines(tmp_path)
    assert bits["lzma"] < bits["unigram"] < bits["uniform"] == 8.0


def test_subwords_lose_nothing_and_are_fewer_than_bytes(folder, tmp_path):
    pytest.importorskip("sentencepiece")
    task = SubwordFolder(folder=folder, length=8, vocabulary=320)
    for text in ("the lazy\n\n dog  –\ttwo", "naïve ☃ of unseen signs", " leading and trailing "):
        assert task.decode(task.encode(text)) == text
        assert task.decode(np.concatenate([task.encode("dog"), task.encode(text)])) == "dog" + text
    for split in SPLITS:
        found = joined(task, split, tmp_path)
        documents = list(task.documents(split, tmp_path))
        whole = np.concatenate([task.tokens(document) for document in documents])
        np.testing.assert_array_equal(found, whole[: len(found)])
        assert whole.max() < task.vocabulary and len(whole) < 0.6 * sum(map(len, documents))
    perplexity = task.baselines(tmp_path)
    assert 1 < perplexity["unigram"] < perplexity["uniform"] == 320
    assert task.metric == "perplexity"
    with pytest.raises(BadInput, match="cannot be learned"):
        SubwordFolder(folder=folder, vocabulary=100_000).tokens(b"x")


def test_folders_that_will_not_do_are_refused(folder, tmp_path, monkeypatch):
    with pytest.raises(BadInput, match="no folder"):
        TextFolder(folder=str(tmp_path / "nowhere"))
    with pytest.raises(BadInput, match="No text in files"):
        TextFolder(folder=folder, files="*.md").texts()
    with pytest.raises(BadInput, match="too few for a window"):
        TextFolder(folder=folder, length=100_000).examples_in("test")
    monkeypatch.setitem(__import__("sys").modules, "sentencepiece", None)
    with pytest.raises(BadInput, match="install"):
        SubwordFolder(folder=folder).fingerprint()


@pytest.mark.parametrize("corpus", ["lm1b", "wiki40b", "pg19", "lambada", "c4"])
def test_catalogue_texts_are_read_without_a_download_in_the_mock(corpus, tmp_path, monkeypatch):
    tfds = pytest.importorskip("tensorflow_datasets")
    monkeypatch.setattr(catalogue, "reach", lambda url: None)
    catalogue.prepared.cache_clear()
    task = CatalogueText(corpus=corpus, length=16)
    with tfds.testing.mock_data(num_examples=400, mock_array_record_data_source=None):
        documents = {split: list(task.documents(split, tmp_path)) for split in SPLITS}
        rows = list(task.rows("train", tmp_path))
    catalogue.prepared.cache_clear()
    assert all(isinstance(text, bytes) for texts in documents.values() for text in texts)
    assert len(documents["test"]) == 400 and len(rows) > 100
    if corpus in ("lm1b", "c4"):  # the mock gives every part the same documents
        assert sorted(documents["train"] + documents["validation"]) == sorted(documents["test"])
        assert 0 < len(documents["validation"]) < 20


def test_a_catalogue_text_that_cannot_be_had_says_so(tmp_path, monkeypatch):
    def no_network(url):
        raise OSError("unreachable")

    monkeypatch.setattr(catalogue, "reach", no_network)
    catalogue.prepared.cache_clear()
    with pytest.raises(BadInput, match="lm1b: the download failed .* in the folder tfds"):
        list(CatalogueText().rows("train", tmp_path))
    with pytest.raises(BadInput, match="Unknown corpus"):
        CatalogueText(corpus="lm2b")
