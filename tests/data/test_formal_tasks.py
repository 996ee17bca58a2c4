"""Parity, modular arithmetic, permutation groups and ListOps, each against a second way to compute it."""

from __future__ import annotations

import itertools
import statistics

import numpy as np
import pytest

from transformer_jax.data import builders
from transformer_jax.data.tasks import (
    BracketedArithmetic,
    ListOps,
    ModularArithmetic,
    Parity,
    PermutationGroup,
)
from transformer_jax.data.tasks.permutation_group import products
from transformer_jax.errors import BadInput

pytestmark = pytest.mark.quick


def read(batch):
    """The strings without padding, and the value at the last symbol of each, which alone carries loss."""
    last = batch["lengths"] - 1
    rows = np.arange(len(last))
    np.testing.assert_array_equal(batch["weights"], np.eye(batch["inputs"].shape[1])[last])
    return [row[: end + 1] for row, end in zip(batch["inputs"], last, strict=True)], batch["targets"][
        rows, last
    ]


def test_parity_counts_the_ones():
    strings, values = read(Parity().examples(0, np.arange(2000)))
    assert [int(string.sum()) % 2 for string in strings] == values.tolist()
    assert {len(string) for string in strings} == set(range(3, 41)) and 0.45 < values.mean() < 0.55


@pytest.mark.parametrize("kind", [ModularArithmetic, BracketedArithmetic])
@pytest.mark.parametrize("operators", ["+-*", "+-"])
def test_arithmetic_agrees_with_the_interpreter(kind, operators):
    task = kind(length=31, shortest=1, operators=operators)
    strings, values = read(task.examples(1, np.arange(2000)))
    texts = [task.decode(string) for string in strings]
    assert [eval(text) % 5 for text in texts] == values.tolist()
    assert ("*" in "".join(texts)) == ("*" in operators)
    assert {len(string) for string in strings} == set(range(1, 32, 2 if kind is ModularArithmetic else 1))
    assert task.encode(texts[3]).tolist() == strings[3].tolist()


def test_bracketed_strings_split_anywhere():
    """The left part of a string of n symbols has 1 … n − 4 of them, each length as likely."""
    task = BracketedArithmetic(length=12, shortest=12)
    lefts = []
    for row in task.examples(0, np.arange(4000))["inputs"]:
        text, depth = task.decode(row), 0
        assert text[0] == "(" and text[-1] == ")"
        for place, sign in enumerate(text[1:], 1):
            depth += {"(": 1, ")": -1}.get(sign, 0)
            # The operator at depth 0 is not the sign of the left part, which begins at 1.
            if depth == 0 and sign in "+-*" and place > 1:
                lefts.append(place - 1)
                break
    counts = np.bincount(lefts, minlength=9)[1:]
    assert len(lefts) == 4000 and len(counts) == 8
    assert ((counts - 500) ** 2 / 500).sum() < 30  # 7 degrees of freedom: p = 1e-4


def test_longer_strings_are_the_test():
    [(name, longer)] = Parity().evaluations().items()
    lengths = longer.examples(0, np.arange(3000))["lengths"]
    assert name == "40-256" and lengths.min() == 40 and lengths.max() == 256
    assert Parity().longest == 256 and Parity(test_to=0).evaluations() == {}


@pytest.mark.parametrize(("group", "order"), [("S5", 120), ("A5", 60), ("A4xZ5", 60), ("Z60", 60)])
def test_tables_are_groups(group, order):
    table, every = products(group), np.arange(order)
    assert table.shape == (order, order)
    assert (np.sort(table, axis=0) == every[:, None]).all() and (np.sort(table, axis=1) == every).all()
    assert (table[table] == table[:, table]).all()  # (ab)c = a(bc)
    assert (table[0] == every).all() and (table[:, 0] == every).all()
    abelian = (table == table.T).all()
    assert abelian == (group == "Z60")
    # A5 is simple: the commutators generate all of it. Those of A4 × Z5 do not.
    inverse = table.argmin(axis=1)
    commutators = {int(table[table[a, b], table[inverse[a], inverse[b]]]) for a in every for b in every}
    assert (len(commutators) == 60) == (group in ("A5", "S5"))


def test_targets_are_the_product_so_far():
    """With the permutations themselves, applied one after another to five places."""
    task = PermutationGroup(group="S5", length=20)
    elements = list(itertools.permutations(range(5)))
    batch = task.examples(0, np.arange(50))
    for inputs, targets in zip(batch["inputs"], batch["targets"], strict=True):
        places = tuple(range(5))
        for element, target in zip(inputs, targets, strict=True):
            places = tuple(elements[element][place] for place in places)
            assert elements[target] == places
    assert list(PermutationGroup(length=16, test_up_to=64).evaluations()) == ["32", "64"]


def value_of(words):
    """A second evaluator of ListOps, by recursion, with its own median."""
    word = words.pop(0)
    if word.isdigit():
        return int(word)
    arguments = []
    while words[0] != "]":
        arguments.append(value_of(words))
    words.pop(0)
    return {
        "[MIN": min,
        "[MAX": max,
        "[MED": lambda found: int(statistics.median(found)),
        "[SM": lambda found: sum(found) % 10,
    }[word](arguments)


@pytest.mark.parametrize(
    "task", [ListOps(), ListOps(length=60, shortest=5, depth=4, arguments=5)], ids=["published", "small"]
)
def test_list_ops_agrees_with_a_second_evaluator(task):
    batch = task.examples(0, np.arange(200))
    for row, size, target in zip(batch["inputs"], batch["lengths"], batch["targets"], strict=True):
        assert task.shortest < size < task.length and (row[size:] == 15).all() and (row[:size] < 15).all()
        words = task.decode(row).split()
        assert len(words) == size and task.encode(" ".join(words)).tolist() == row[:size].tolist()
        assert value_of(words) == target and not words
        depth, deepest = 1, 1
        for token in row[:size].tolist():
            depth += (10 <= token < 14) - (token == 14)
            deepest = max(deepest, depth)
        assert deepest <= task.depth


def test_list_ops_goes_on_where_no_attempt_of_a_block_is_right():
    """As with the published lengths and the third example of seed 0, when it is asked for alone."""
    task = ListOps()
    together = task.examples(0, np.arange(4))["inputs"]
    for index in range(4):
        np.testing.assert_array_equal(task.examples(0, np.array([index]))["inputs"][0], together[index])


def test_list_ops_trees_follow_the_published_law():
    """Without a bound on length: the share of operators by depth, and their arguments."""
    task = ListOps(length=10_000, shortest=0, depth=3, arguments=10)
    kinds, arguments = [0, 0], []
    for text in task.expressions(0, np.arange(4000))[0]:
        open_ = []
        for token in text:
            if token == 14:
                arguments.append(open_.pop())
                continue
            if len(open_) == 1:
                kinds[token >= 10] += 1
            if open_:
                open_[-1] += 1
            if token >= 10:
                open_.append(0)
    assert kinds[1] / sum(kinds) == pytest.approx(0.25, abs=0.02)
    counts = np.bincount(arguments, minlength=11)
    assert counts[:2].sum() == 0 and len(counts) == 11
    expected = counts.sum() / 9
    assert ((counts[2:] - expected) ** 2 / expected).sum() < 32  # 8 degrees of freedom: p = 1e-4


def test_list_ops_are_stored_as_bytes(tmp_path):
    task = ListOps(
        length=60, shortest=5, depth=4, train_examples=30, validation_examples=20, test_examples=20
    )
    stored = builders.read(task, "test", tmp_path)
    assert stored.columns()["text"].dtype == object
    drawn = task.examples(-3, np.arange(20))
    for name, rows in stored.all().items():
        np.testing.assert_array_equal(rows, drawn[name])
    assert {"chance", "majority"} == task.baselines(tmp_path).keys()


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: Parity(shortest=41), "must each rise"),
        (lambda: Parity(test_from=300), "must each rise"),
        (lambda: ModularArithmetic(length=4, shortest=4), "no odd length"),
        (lambda: ModularArithmetic(modulus=1), "at least 2"),
        (lambda: ModularArithmetic(operators="/"), "Unknown operators"),
        (lambda: ModularArithmetic().encode("1+(2)"), "reads expressions"),
        (lambda: PermutationGroup(group="S6"), "Unknown group"),
        (lambda: ListOps(shortest=1999), "no length lies between"),
        (lambda: ListOps(depth=2), "allow at most 12 tokens"),
        (lambda: ListOps().encode("[MEAN 1 2 ]"), "not '.MEAN'"),
    ],
)
def test_bad_parameters_are_refused_with_a_sentence(make, sentence):
    with pytest.raises(BadInput, match=sentence):
        make()


def test_examples_do_not_depend_on_their_batch():
    for task in (ListOps(length=60, shortest=20, depth=4), BracketedArithmetic(length=30)):
        whole, some = task.examples(3, np.arange(300)), task.examples(3, np.array([299, 7]))
        for name in whole:
            np.testing.assert_array_equal(some[name], whole[name][[299, 7]])
