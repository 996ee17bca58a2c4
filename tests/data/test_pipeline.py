"""Streams: exact resume, one global batch for any number of processes, finite splits stored once."""

from __future__ import annotations

import dataclasses
import json
import threading
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pytest

from transformer_jax.data import builders
from transformer_jax.data.pipeline import evaluation_batches, train_batches
from transformer_jax.data.task import FIXED_SEEDS
from transformer_jax.data.tasks import AssociativeRecall, Copy
from transformer_jax.errors import BadInput

pytestmark = pytest.mark.quick

ENDLESS = AssociativeRecall(length=16, pairs=2, vocabulary=32, validation_examples=11, test_examples=10)
FINITE = dataclasses.replace(ENDLESS, train_examples=10)


def take(stream, count):
    return [next(stream) for _ in range(count)]


def assert_same(first, second):
    for one, other in zip(first, second, strict=True):
        assert one.keys() == other.keys()
        for key in one:
            np.testing.assert_array_equal(one[key], other[key])


def numbers(task, batch, seed):
    """The example numbers in a batch of a generated task."""
    known = task.examples(seed, np.arange(100))["inputs"]
    return [int(np.flatnonzero((known == row).all(axis=1))[0]) for row in batch["inputs"]]


@pytest.mark.parametrize("task", [ENDLESS, FINITE], ids=["endless", "finite"])
def test_resuming_is_exact(task, tmp_path):
    stream = train_batches(task, batch=4, seed=7, directory=tmp_path)
    whole = take(stream, 9)
    begun = train_batches(task, batch=4, seed=7, directory=tmp_path)
    assert_same(take(begun, 4), whole[:4])
    state = json.loads(json.dumps(begun.state()))
    fresh = train_batches(task, batch=4, seed=7, directory=tmp_path)
    fresh.restore(state)
    assert fresh.state() == state
    assert_same(take(fresh, 5), whole[4:])
    stream.restore(state)  # also backwards, with batches already prefetched
    assert_same(take(stream, 5), whole[4:])


@pytest.mark.parametrize("task", [ENDLESS, FINITE], ids=["endless", "finite"])
def test_the_global_batch_does_not_depend_on_the_processes(task, tmp_path):
    alone = take(train_batches(task, batch=6, seed=1, directory=tmp_path), 4)
    for processes in (2, 3):
        streams = [
            train_batches(task, batch=6, seed=1, directory=tmp_path, rows=rows)
            for rows in np.split(np.arange(6), processes)
        ]
        shares = [take(stream, 4) for stream in streams]
        joined = [
            {key: np.concatenate([b[key] for b in parts]) for key in parts[0]}
            for parts in zip(*shares, strict=True)
        ]
        assert_same(joined, alone)
        assert len({json.dumps(stream.state()) for stream in streams}) == 1


def test_endless_training_never_repeats_and_obeys_its_seed(tmp_path):
    stream = train_batches(ENDLESS, batch=8, seed=3, directory=tmp_path)
    assert_same([next(stream)], [ENDLESS.examples(3, np.arange(8))])
    assert_same([next(stream)], [ENDLESS.examples(3, np.arange(8, 16))])
    assert not list(tmp_path.iterdir())


def test_a_finite_training_set_is_seen_whole_in_every_epoch(tmp_path):
    seen = {}
    for seed in (0, 1):
        batches = take(train_batches(FINITE, batch=4, seed=seed, directory=tmp_path), 5)
        order = [n for batch in batches for n in numbers(FINITE, batch, FIXED_SEEDS["train"])]
        assert sorted(order[:10]) == sorted(order[10:]) == list(range(10))
        assert order[:10] != order[10:]
        seen[seed] = order
    assert seen[0] != seen[1]


def test_a_curriculum_is_told_the_step(tmp_path):
    @dataclass(frozen=True, kw_only=True)
    class Growing(Copy):
        name: ClassVar[str] = "growing"

        def examples(self, seed, indices, step=0):
            shown = super().examples(seed, indices, step)
            return {**shown, "targets": np.full_like(shown["targets"], step)}

    stream = train_batches(Growing(length=8), batch=2, seed=0, directory=tmp_path)
    assert [int(batch["targets"][0, 0]) for batch in take(stream, 3)] == [0, 1, 2]


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"task": dataclasses.replace(ENDLESS, pairs=3)}, "fingerprint was"),
        ({"task": FINITE}, "examples was None and is 10"),
        ({"batch": 8}, "batch was 4 and is 8"),
        ({"seed": 8}, "seed was 7 and is 8"),
    ],
)
def test_the_position_in_other_data_is_refused(change, word, tmp_path):
    same = {"task": ENDLESS, "batch": 4, "seed": 7}
    stream = train_batches(directory=tmp_path, **same)
    other = train_batches(directory=tmp_path, **{**same, **change})
    with pytest.raises(BadInput, match=word):
        other.restore(stream.state())


def test_stored_splits_are_what_was_generated(tmp_path):
    for split in ("train", "validation", "test"):
        stored = builders.read(FINITE, split, tmp_path)
        expected = FINITE.examples(FIXED_SEEDS[split], np.arange(FINITE.examples_in(split)))
        assert len(stored) == FINITE.examples_in(split)
        assert_same([stored.all()], [expected])
        some = np.array([7, 2, 2])
        assert_same([stored[some]], [{key: value[some] for key, value in expected.items()}])
    assert stored.all()["weights"].dtype == np.float32


def test_a_split_too_large_for_memory_is_read_by_index(tmp_path, monkeypatch):
    expected = builders.read(FINITE, "test", tmp_path)[np.array([3, 1])]
    monkeypatch.setattr(builders, "IN_MEMORY", 0)
    builders._read.cache_clear()
    assert_same([builders.read(FINITE, "test", tmp_path)[np.array([3, 1])]], [expected])


def test_splits_are_kept_and_changed_parameters_never_meet_them(tmp_path, monkeypatch):
    first = builders.read(ENDLESS, "test", tmp_path).all()
    builders._read.cache_clear()
    with monkeypatch.context() as patch:  # nothing may be generated again
        patch.setattr(AssociativeRecall, "rows", None)
        assert_same([builders.read(ENDLESS, "test", tmp_path).all()], [first])
    other = builders.read(dataclasses.replace(ENDLESS, vocabulary=34), "test", tmp_path).all()
    assert not np.array_equal(other["inputs"], first["inputs"])
    names = sorted(path.name for path in (tmp_path / "associative_recall").iterdir())
    assert len(names) == 2 and all(name.startswith("test-") for name in names)


def test_writers_at_once_do_not_harm_each_other(tmp_path):
    target = tmp_path / "associative_recall" / "test-x"
    failures = []

    def write():
        try:
            builders._write(ENDLESS, "test", tmp_path, target)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=write) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert [path.name for path in target.parent.iterdir()] == ["test-x"]


def test_evaluation_is_whole_in_order_and_padded_with_rows_that_weigh_nothing(tmp_path):
    expected = ENDLESS.examples(FIXED_SEEDS["validation"], np.arange(11))
    batches = list(evaluation_batches(ENDLESS, "validation", batch=4, directory=tmp_path))
    assert [batch["inputs"].shape for batch in batches] == [(4, 16)] * 3
    joined = {key: np.concatenate([batch[key] for batch in batches]) for key in expected}
    assert_same([{key: value[:11] for key, value in joined.items()}], [expected])
    assert joined["weights"][11:].sum() == 0 and joined["weights"].dtype == np.float32
    np.testing.assert_array_equal(joined["inputs"][11], expected["inputs"][10])


def test_evaluation_can_be_limited_and_shared(tmp_path):
    few = list(evaluation_batches(ENDLESS, "test", batch=4, directory=tmp_path, limit=5))
    assert len(few) == 2 and sum((batch["weights"].sum(axis=1) > 0).sum() for batch in few) == 5
    shares = [
        list(evaluation_batches(ENDLESS, "test", batch=4, directory=tmp_path, limit=5, rows=rows))
        for rows in np.split(np.arange(4), 2)
    ]
    joined = [
        {key: np.concatenate([b[key] for b in parts]) for key in parts[0]}
        for parts in zip(*shares, strict=True)
    ]
    assert_same(joined, few)


def test_what_cannot_be_read_or_written_is_refused_with_a_sentence(tmp_path):
    with pytest.raises(BadInput, match="endless"):
        builders.read(ENDLESS, "train", tmp_path)
    with pytest.raises(BadInput, match="Unknown split"):
        builders.read(ENDLESS, "dev", tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(BadInput, match="cannot be written under .*file.*; choose another folder"):
        builders.read(ENDLESS, "test", tmp_path / "file")
    with pytest.raises(BadInput, match="cannot be written"):
        ENDLESS.baselines(tmp_path / "file")
    builders.read(ENDLESS, "test", tmp_path)
    [path] = (tmp_path / "associative_recall").iterdir()
    for record in path.glob("*.array_record*"):
        record.write_bytes(b"nothing")
    builders._read.cache_clear()
    with pytest.raises(BadInput, match="delete that directory"):
        builders.read(ENDLESS, "test", tmp_path)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"batch": 0}, "at least 1"),
        ({"batch": 2.5}, "whole number"),
        ({"seed": -1}, "at least 0"),
    ],
)
def test_impossible_streams_are_refused(options, sentence, tmp_path):
    with pytest.raises(BadInput, match=sentence):
        train_batches(ENDLESS, directory=tmp_path, **{"batch": 4, "seed": 0, **options})


def test_an_empty_evaluation_is_refused(tmp_path):
    with pytest.raises(BadInput, match="at least 1"):
        evaluation_batches(ENDLESS, "test", batch=4, directory=tmp_path, limit=0)


def test_an_empty_split_is_refused(tmp_path):
    @dataclass(frozen=True, kw_only=True)
    class Nothing(Copy):
        name: ClassVar[str] = "nothing"

        def rows(self, split, directory):
            return iter(())

    with pytest.raises(BadInput, match="the test split is empty"):
        builders.read(Nothing(length=8), "test", tmp_path)


def test_ids_outside_the_vocabulary_and_empty_rows_are_refused_where_they_are_read(tmp_path):
    @dataclass(frozen=True, kw_only=True)
    class Wrong(Copy):
        name: ClassVar[str] = "wrong"
        fault: str = "inputs"

        def examples(self, seed, indices, step=0):
            batch = super().examples(seed, indices, step)
            wrong = {"inputs": batch["inputs"] - 1, "targets": batch["targets"] + 90}
            lengths = np.zeros(len(indices), np.int32)
            return {
                **batch,
                **({"lengths": lengths} if self.fault == "lengths" else {self.fault: wrong[self.fault]}),
            }

    for fault, sentence in (("inputs", "id -1"), ("targets", "outside 0 to 11"), ("lengths", "all padding")):
        with pytest.raises(BadInput, match=sentence):
            next(train_batches(Wrong(length=8, fault=fault), batch=2, seed=0, directory=tmp_path))
