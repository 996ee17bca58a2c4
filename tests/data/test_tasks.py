"""The generated tasks: pure, pinned, and what their papers say."""

from __future__ import annotations

import dataclasses
import hashlib
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from transformer_jax.data import builders
from transformer_jax.data.draws import Draws, permutation
from transformer_jax.data.task import FIXED_SEEDS
from transformer_jax.data.tasks import (
    TASKS,
    AssociativeRecall,
    BracketedArithmetic,
    Copy,
    InductionHeads,
    LinearRegression,
    ListOps,
    ModularArithmetic,
    NeedleRetrieval,
    Parity,
    Pathfinder,
    PermutationGroup,
    RecallMix,
    SelectiveCopying,
    task_class,
)
from transformer_jax.errors import BadInput

pytestmark = pytest.mark.quick

GENERATED = {
    "recall": AssociativeRecall(),
    "recall with random filler": AssociativeRecall(length=32, pairs=8, vocabulary=64, filler="random"),
    "copy": Copy(length=24),
    "induction": InductionHeads(length=32),
    "recall mix": RecallMix(length=32, mix=((16, 2, 3), (32, 4, 1)), tests=((16, 4),), vocabulary=64),
    "needle": NeedleRetrieval(length=48, needles=3, digits=2, alphabet=16),
    "selective copying": SelectiveCopying(length=40, data=5),
    "list ops": ListOps(length=60, shortest=10, depth=5),
    "pathfinder": Pathfinder(paddles=6, distractors=2),
    "parity": Parity(),
    "modular arithmetic": ModularArithmetic(),
    "with brackets": BracketedArithmetic(),
    "A5": PermutationGroup(group="A5"),
    "S5": PermutationGroup(group="S5"),
}
PINS = {
    "recall": "023daf2e74cde435809741c26ecbd86e129477284bd13c4ab026eb8a35fd3916",
    "recall with random filler": "509b7e5111f1201d9a9475eb0f91db21c2742e23ab3ef2639656d5818ea5c888",
    "copy": "2d49bbb46d9e62de26c0eb12554a7bbcb3d24a8108c0b6909993af560b0cc1c4",
    "induction": "95e79ca25df19d212c24ed33d198025e1724f79b35aa340c5da8be950c4ddf4c",
    "recall mix": "c3a25037641abc171ddda6a3a7fc36ff3d6395572f75b30eb395f4d7371ed625",
    "needle": "26aecb09b38a9dde876055e55cb159e9b99bdc631bd533da3875a4b435bb12f2",
    "selective copying": "4fce772227e7a876de24ae4e089961c5db0383a3358434b618ac0e865912fb90",
    "list ops": "5c9005f285d59357831c9eb797aa66367ea8191f14fbec898ac02b9710b58261",
    "pathfinder": "b398e485dcf30347547ce5fe457281bcd29bd4ca9677957101ca5597f88bf88a",
    "parity": "9e1d5cc5fa208a6f1376f06af529e7f665a981351cd9177bf94ac1ffe2011d99",
    "modular arithmetic": "e3b8a7d4f7a8785d874f54e80052bddd8b7ab62b27a5b92e18f200ad8aeccaee",
    "with brackets": "4475fa0c9c4ae6e1c91215bdf0248a3a11e635dd4e3d0840f2be9cf9c32343d1",
    "A5": "c23e58233f470f50dbd51f3213ccc42860e8d1496605b5c5b586b16ec5b32107",
    "S5": "8ca6ac695f68284f85f8a763506e9aad151fc746657ebc741405ead8bc07ecdd",
}


def digest(batch):
    """sha256 over the little-endian bytes of inputs, targets and weights."""
    parts = (("inputs", "<i4"), ("targets", "<i4"), ("weights", "<f4"))
    return hashlib.sha256(b"".join(batch[key].astype(kind).tobytes() for key, kind in parts)).hexdigest()


@pytest.mark.parametrize("task", [*GENERATED.values(), LinearRegression()], ids=str)
def test_a_batch_has_the_shapes_that_its_specification_says(task):
    columns = task.examples(0, np.arange(2)) if task.endless else None
    if columns is None:
        rows = [row for row, _ in zip(task.rows("validation", Path()), range(2), strict=False)]
        pile = lambda values: np.array(values, object) if isinstance(values[0], bytes) else np.stack(values)
        columns = task.collate({name: pile([row[name] for row in rows]) for name in rows[0]})
    assert {name: (x.shape, x.dtype) for name, x in columns.items()} == task.specification(2)


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
        shape = (50, task.length) if task.target == "token" else (50,)
        assert batch["inputs"].shape == (50, task.length)
        assert batch["targets"].shape == batch["weights"].shape == shape
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


def test_a_mix_draws_its_parts_by_share_and_tests_them_in_turn(tmp_path):
    task = RecallMix(
        length=32, mix=((16, 2, 3), (32, 4, 1)), tests=((16, 4), (64, 8)), vocabulary=64, test_examples=10
    )
    batch = task.examples(0, np.arange(4000))
    long = batch["lengths"] == 32
    assert np.mean(long) == pytest.approx(0.25, abs=0.02) and set(batch["lengths"]) == {16, 32}
    np.testing.assert_allclose(batch["weights"].sum(axis=1), 1)  # an example counts once
    assert (batch["inputs"][~long, 16:] == 0).all() and (
        (batch["weights"] > 0).sum(axis=1) == 2 + 2 * long
    ).all()
    part = AssociativeRecall(length=32, pairs=4, vocabulary=64, filler="random")
    np.testing.assert_array_equal(batch["inputs"][long], part.examples(0, np.flatnonzero(long))["inputs"])
    rows = list(task.rows("test", tmp_path))
    assert [row["lengths"] for row in rows] == [16, 64] * 5 and task.longest == 64
    assert {row["inputs"].shape for row in rows} == {(64,)}
    assert {name: test.length for name, test in task.evaluations().items()} == {"16x4": 16, "64x8": 64}


def test_selective_copying_asks_for_the_data_in_order():
    task = SelectiveCopying(length=60, data=6)
    for row, targets, weights in zip(*task.examples(0, np.arange(200)).values(), strict=True):
        data = row[:54][row[:54] > 0]
        assert len(data) == 6 and data.min() >= 2 and data.max() < 16 and (row[54:] == 1).all()
        np.testing.assert_array_equal(targets[54:], data)
        assert (weights[54:] == 1).all() and not weights[:54].any() and not targets[:54].any()


@pytest.mark.parametrize("depth", [None, 0.5])
def test_a_needle_is_found_by_its_key(depth):
    task = NeedleRetrieval(length=60, needles=4, digits=3, alphabet=20, depth=depth)
    places = []
    for inputs, targets, weights in zip(*task.examples(0, np.arange(300)).values(), strict=True):
        starts = np.flatnonzero(inputs[:56] == 0)
        needles = {int(inputs[start + 1]): inputs[start + 2 : start + 5].tolist() for start in starts}
        assert len(needles) == 4 and inputs[56] == 1
        assert targets[57:].tolist() == needles[int(inputs[57])] == [*inputs[58:].tolist(), targets[59]]
        assert np.flatnonzero(weights).tolist() == [57, 58, 59]
        places += [start for start in starts if inputs[start + 1] == inputs[57]]
    if depth is None:
        assert min(places) < 3 and max(places) > 48
    else:  # the other three lie before it or behind
        assert max(places) - min(places) == 3 * 4


def test_depths_of_a_needle():
    for depth, bounds in ((0.0, (0, 0)), (1.0, (51, 51))):
        inputs = NeedleRetrieval(length=60, digits=3, depth=depth).examples(0, np.arange(50))["inputs"]
        where = (inputs[:, :56] == 0).argmax(axis=1)
        assert (where.min(), where.max()) == bounds
    names = list(NeedleRetrieval(length=512, test_up_to=2048).evaluations())
    assert names == ["depth 0", "depth 0.25", "depth 0.5", "depth 0.75", "depth 1", "1024", "2048"]


def test_marks_of_a_pathfinder_image_lie_on_one_curve_or_on_two():
    """Without distractors strokes fall into two curves by nearness: the label says where the marks lie."""
    from scipy import ndimage

    task = Pathfinder(length=64**2, paddles=6, distractors=0, paddle_length=4.0, seed_distance=14.0)
    images, labels = task.images(0, np.arange(60))
    right = total = 0
    for image, label in zip(images.reshape(-1, 64, 64), labels, strict=True):
        curves, count = ndimage.label(ndimage.binary_dilation(image > 0, np.ones((3, 3))), np.ones((3, 3)))
        marks = ndimage.label(ndimage.binary_opening(image == 255, np.ones((2, 2))))
        centres = ndimage.center_of_mass(image == 255, marks[0], range(1, marks[1] + 1))
        if count == 2 and marks[1] == 2:  # else the two curves touch
            first, second = (curves[round(y), round(x)] for y, x in centres)
            right, total = right + ((first == second) == label), total + 1
    assert total > 15 and right == total
    assert 0.3 < labels.mean() < 0.7


def test_pathfinder_labels_do_not_show_in_single_pixels():
    """What counts and places of lit pixels alone say of the label is chance."""
    images, labels = Pathfinder().images(0, np.arange(400))
    train, test = slice(0, 300), slice(300, 400)
    means = [images[train][labels[train] == label].mean(axis=0) for label in (0, 1)]
    near = [((images[test] - mean) ** 2).sum(axis=1) for mean in means]
    assert np.mean((near[1] < near[0]) == labels[test]) < 0.68  # 100 draws: p = 1e-4 at chance
    brightness = images.mean(axis=1)
    gap = brightness[labels == 1].mean() - brightness[labels == 0].mean()
    assert abs(gap) < 4 * brightness.std() / 10


@pytest.mark.parametrize("name", GENERATED)
def test_what_is_stored_is_what_was_drawn(name, tmp_path):
    task = dataclasses.replace(GENERATED[name], validation_examples=5)
    stored = builders.read(task, "validation", tmp_path).all()
    if name == "recall mix":  # its splits are of other sizes than its training
        drawn = task.part(16, 4).examples(FIXED_SEEDS["validation"], np.arange(5))
        np.testing.assert_array_equal(stored["inputs"][:, :16], drawn["inputs"])
    else:
        drawn = task.examples(FIXED_SEEDS["validation"], np.arange(5))
        assert stored.keys() == drawn.keys()
        for key, values in drawn.items():
            np.testing.assert_array_equal(stored[key], values)
    assert [stored[key].dtype for key in ("inputs", "targets")] == [np.int32] * 2
