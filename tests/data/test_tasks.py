"""The generated tasks: pure, pinned, and what their papers say."""

from __future__ import annotations

import hashlib
import subprocess
import sys

import numpy as np
import pytest

from transformer_jax.data.draws import Draws, permutation
from transformer_jax.data.task import FIXED_SEEDS
from transformer_jax.data.tasks import TASKS, AssociativeRecall, Copy, InductionHeads, task_class
from transformer_jax.errors import BadInput

pytestmark = pytest.mark.quick

GENERATED = {
    "recall": AssociativeRecall(),
    "recall with random filler": AssociativeRecall(length=32, pairs=8, vocabulary=64, filler="random"),
    "copy": Copy(length=24),
    "induction": InductionHeads(length=32),
}
PINS = {
    "recall": "023daf2e74cde435809741c26ecbd86e129477284bd13c4ab026eb8a35fd3916",
    "recall with random filler": "509b7e5111f1201d9a9475eb0f91db21c2742e23ab3ef2639656d5818ea5c888",
    "copy": "2d49bbb46d9e62de26c0eb12554a7bbcb3d24a8108c0b6909993af560b0cc1c4",
    "induction": "95e79ca25df19d212c24ed33d198025e1724f79b35aa340c5da8be950c4ddf4c",
}


def digest(batch):
    """sha256 over the little-endian bytes of inputs, targets and weights."""
    parts = (("inputs", "<i4"), ("targets", "<i4"), ("weights", "<f4"))
    return hashlib.sha256(b"".join(batch[key].astype(kind).tobytes() for key, kind in parts)).hexdigest()


@pytest.mark.parametrize("name", GENERATED)
def test_first_examples_never_change(name):
    assert digest(GENERATED[name].examples(0, np.arange(8), 0)) == PINS[name]


@pytest.mark.parametrize("name", GENERATED)
def test_a_subset_in_any_order_equals_rows_of_the_whole(name):
    task, indices = GENERATED[name], np.array([17, 3, 99, 4, 2**40])
    whole = task.examples(5, np.arange(100))
    some = task.examples(5, indices)
    for key, rows in some.items():
        np.testing.assert_array_equal(rows[:4], whole[key][indices[:4]])
        np.testing.assert_array_equal(rows[4:], task.examples(5, indices[4:])[key])


@pytest.mark.parametrize("name", GENERATED)
def test_seeds_and_splits_give_other_examples_within_the_vocabulary(name):
    task = GENERATED[name]
    batches = [task.examples(seed, np.arange(50)) for seed in (0, 1, *FIXED_SEEDS.values())]
    assert len({digest(batch) for batch in batches}) == len(batches)
    rows = np.concatenate([batch["inputs"] for batch in batches])
    assert len(np.unique(rows, axis=0)) > 0.9 * len(rows)  # short words to copy do repeat
    for batch in batches:
        assert {value.shape for value in batch.values()} == {(50, task.length)}
        assert [batch[key].dtype for key in ("inputs", "targets", "weights")] == [
            np.int32,
            np.int32,
            np.float32,
        ]
        assert batch["inputs"].min() >= 0 and batch["inputs"].max() < task.vocabulary
        assert batch["targets"].min() >= 0 and batch["targets"].max() < task.outputs


@pytest.mark.parametrize("filler", ["zeros", "random"])
def test_recall_asks_every_key_once_and_scores_only_the_questions(filler):
    task = AssociativeRecall(length=64, pairs=8, vocabulary=100, filler=filler)
    batch = task.examples(0, np.arange(500))
    for inputs, targets, weights in zip(batch["inputs"], batch["targets"], batch["weights"], strict=True):
        keys, values = inputs[:16:2], inputs[1:16:2]
        assert len(set(keys)) == len(set(values)) == 8
        assert keys.min() >= 1 and keys.max() < 50 <= values.min() and values.max() < 100
        asked = np.flatnonzero(weights)
        assert (asked >= 16).all() and (asked % 2 == 0).all() and (weights[asked] == 1).all()
        assert sorted(inputs[asked]) == sorted(keys)
        value_of = dict(zip(keys, values, strict=True))
        assert [value_of[key] for key in inputs[asked]] == targets[asked].tolist()
        others = np.setdiff1d(np.arange(16, 64), asked)
        assert (targets[weights == 0] == 0).all()
        assert filler == "random" or (inputs[others] == 0).all()
    if filler == "random":
        assert len(np.unique(batch["inputs"][:, 16:])) == 100


def test_recall_draws_slots_by_the_power_law():
    task = AssociativeRecall(length=40, pairs=2, vocabulary=64)
    batch = task.examples(0, np.arange(20_000))
    slots = np.arange(1, 19)
    law = 0.01 * slots ** (0.01 - 1)
    law /= law.sum()
    first = (batch["inputs"] == batch["inputs"][:, :1])[:, 4::2].argmax(axis=1)
    second = (batch["inputs"] == batch["inputs"][:, 2:3])[:, 4::2].argmax(axis=1)
    # The first key's slot follows the law; the second's follows it among the slots that are left.
    expected = sum(law[i] * np.where(slots - 1 == i, 0, law) / (1 - law[i]) for i in range(18))
    for drawn, probabilities in ((first, law), (second, expected)):
        counts = np.bincount(drawn, minlength=18)
        chi_square = ((counts - 20_000 * probabilities) ** 2 / (20_000 * probabilities)).sum()
        assert chi_square < 48  # 17 degrees of freedom: p = 1e-4


def test_copy_asks_for_the_word_that_was_read():
    task = Copy(length=20, symbols=5)
    batch = task.examples(3, np.arange(300))
    sizes = set()
    for inputs, targets, weights in zip(batch["inputs"], batch["targets"], batch["weights"], strict=True):
        size = int(np.flatnonzero(inputs == 1)[0])
        word = inputs[:size]
        assert word.min() >= 2 and word.max() < 7
        np.testing.assert_array_equal(np.flatnonzero(weights), np.arange(size, 2 * size))
        np.testing.assert_array_equal(targets[size : 2 * size], word)
        np.testing.assert_array_equal(inputs[size + 1 : 2 * size], word[: size - 1])
        assert (inputs[2 * size + 1 :] == 0).all() and (targets[weights == 0] == 0).all()
        sizes.add(size)
    assert sizes == set(range(1, 11))


def test_induction_answers_what_followed_the_trigger():
    batch = InductionHeads(length=12).examples(0, np.arange(2000))
    inputs = batch["inputs"]
    assert ((inputs == 15).sum(axis=1) == 2).all() and (inputs[:, -1] == 15).all()
    first = (inputs == 15).argmax(axis=1)
    assert set(first) == set(range(10))
    np.testing.assert_array_equal(batch["targets"][:, -1], inputs[np.arange(2000), first + 1])
    np.testing.assert_array_equal(batch["weights"], np.eye(12, dtype=np.float32)[[11] * 2000])
    assert set(batch["targets"][:, -1]) == set(range(15))


def test_induction_is_evaluated_at_powers_of_two():
    task = InductionHeads(length=256, test_up_to=1024)
    assert {name: test.length for name, test in task.evaluations().items()} == {
        name: int(name) for name in ("64", "128", "256", "512", "1024")
    }
    assert task.longest == 1024 and InductionHeads().longest == 16384
    assert InductionHeads(test_up_to=0).longest == 256


def test_distinct_draws_are_uniform_over_ordered_choices():
    chosen = Draws(0, np.arange(60_000)).distinct(4, 2)
    codes, counts = np.unique(chosen @ [4, 1], return_counts=True)
    assert len(codes) == 12
    assert ((counts - 5000) ** 2 / 5000).sum() < 41  # 11 degrees of freedom: p = 2e-5
    everything = Draws(1, np.arange(10)).distinct(7, 7)
    np.testing.assert_array_equal(np.sort(everything, axis=1), np.tile(np.arange(7), (10, 1)))


def test_draws_of_rows_columns_and_calls_are_uncorrelated():
    draws = Draws(0, np.arange(400))
    table = np.concatenate([draws.uniform(50) for _ in range(2)], axis=1)
    assert 0.49 < table.mean() < 0.51
    for rows in (table, table.T):
        correlation = np.corrcoef(rows) - np.eye(len(rows))
        assert np.abs(correlation).max() < 5.5 / np.sqrt(rows.shape[1])


def test_permutations_differ_by_epoch_and_seed():
    orders = [permutation(seed, epoch, 50) for seed in (0, 1) for epoch in (0, 1)]
    assert len({order.tobytes() for order in orders}) == 4
    for order in orders:
        np.testing.assert_array_equal(np.sort(order), np.arange(50))


def test_guesses_that_follow_from_the_definition():
    guesses = AssociativeRecall(pairs=4).guesses()
    assert guesses == {
        "chance": 1 / 4096,
        "in context": 1 / 4,
        "not yet asked": (1 + 1 / 2 + 1 / 3 + 1 / 4) / 4,
    }
    assert Copy().guesses() == {"chance": 0.1} and InductionHeads().guesses() == {"chance": 1 / 15}


def test_every_parameter_is_in_the_fingerprint():
    tasks = [
        AssociativeRecall(),
        AssociativeRecall(pairs=5),
        AssociativeRecall(power=0.1),
        AssociativeRecall(test_examples=7),
        AssociativeRecall(filler="random"),
        Copy(),
    ]
    assert len({task.fingerprint() for task in tasks}) == len(tasks)
    assert AssociativeRecall().fingerprint() == AssociativeRecall(length=64).fingerprint()


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: AssociativeRecall(pairs=17), "length of at least 68"),
        (lambda: AssociativeRecall(length=65), "odd"),
        (lambda: AssociativeRecall(vocabulary=8), "at least 10"),
        (lambda: AssociativeRecall(filler="noise"), "Unknown filler of associative_recall 'noise'"),
        (lambda: AssociativeRecall(power=0), "positive"),
        (lambda: AssociativeRecall(pairs=2.5), "whole number"),
        (lambda: AssociativeRecall(train_examples=0), "at least 1"),
        (lambda: AssociativeRecall(test_examples=0), "at least 1"),
        (lambda: Copy(length=1), "at least 2"),
        (lambda: Copy(symbols=1), "at least 2"),
        (lambda: Copy(length=True), "whole number"),
        (lambda: InductionHeads(length=2), "at least 3"),
        (lambda: InductionHeads(vocabulary=2), "at least 3"),
        (lambda: InductionHeads(test_up_to=-1), "at least 0"),
        (lambda: Copy().examples_in("trian"), "did you mean 'train'"),
        (lambda: task_class("associative_recal"), "did you mean 'associative_recall'"),
    ],
)
def test_bad_parameters_are_refused_with_a_sentence(make, sentence):
    with pytest.raises(BadInput, match=sentence):
        make()


def test_the_smallest_vocabulary_works():
    batch = AssociativeRecall(length=16, pairs=4, vocabulary=10).examples(0, np.arange(20))
    assert (np.sort(batch["inputs"][:, 0:8:2], axis=1) == np.arange(1, 5)).all()


def test_the_registry_names_every_task():
    assert set(TASKS) >= {"associative_recall", "copy", "imdb", "induction_heads", "python_text"}
    assert all(task_class(name).name == name for name in TASKS)


def test_no_part_of_it_imports_tensorflow():
    program = (
        "import sys, tempfile, pathlib\n"
        "from transformer_jax.data import pipeline\n"
        "from transformer_jax.data.tasks import Copy\n"
        "task = Copy(length=8, train_examples=5, test_examples=5)\n"
        "with tempfile.TemporaryDirectory() as name:\n"
        "    next(pipeline.train_batches(task, batch=2, seed=0, directory=pathlib.Path(name)))\n"
        "    list(pipeline.evaluation_batches(task, 'test', batch=2, directory=pathlib.Path(name)))\n"
        "sys.exit('tensorflow' in sys.modules)\n"
    )
    assert subprocess.run([sys.executable, "-c", program], timeout=120).returncode == 0
