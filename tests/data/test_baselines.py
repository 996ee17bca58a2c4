"""Counting guessers against corpora that can be counted by hand."""

from __future__ import annotations

import numpy as np
import pytest

from transformer_jax.data import baselines
from transformer_jax.data.tasks import AssociativeRecall, Copy

pytestmark = pytest.mark.quick


def text(string):
    return np.frombuffer(string.encode(), np.uint8)


def batch(inputs, targets, weights=None):
    inputs, targets = np.array(inputs, np.int32), np.array(targets, np.int32)
    weights = np.ones(targets.shape) if weights is None else np.array(weights)
    return {"inputs": inputs, "targets": targets, "weights": weights.astype(np.float32)}


def test_unigram_by_hand():
    # "aab": a has 2 + 1 of 3 + 256 counts, b 1 + 1, every other byte 1.
    expected = -(2 * np.log2(3 / 259) + np.log2(2 / 259) + np.log2(1 / 259)) / 4
    assert baselines.unigram_bits(text("aab"), text("aabz")) == pytest.approx(expected)


def test_bigram_by_hand():
    # "abab": a→b twice, b→a once. Of "abz" the successors b and z are scored.
    expected = -(np.log2(3 / 258) + np.log2(1 / 257)) / 2
    assert baselines.bigram_bits(text("abab"), text("abz")) == pytest.approx(expected)


def test_a_bigram_sees_what_a_unigram_cannot():
    known, test = text("ab" * 5000), text("ab" * 50)
    assert baselines.bigram_bits(known, test) < 0.1 < 0.9 < baselines.unigram_bits(known, test)


def test_compressors_need_few_bits_for_repetition_and_eight_for_noise():
    noise = np.random.default_rng(0).integers(0, 256, 20_000).astype(np.uint8)
    for bits in (baselines.gzip_bits, baselines.lzma_bits):
        assert bits(text("spam " * 4000)) < 0.1
        assert 7.9 < bits(noise) < 8.2


def test_majority_and_bigram_accuracy_count_only_what_carries_loss():
    known = batch([[1, 1, 1, 2], [2, 2, 3, 3]], [[5, 5, 6, 7], [7, 7, 9, 9]], [[1, 1, 1, 1], [1, 1, 0, 0]])
    test = batch([[1, 1, 2, 3]], [[5, 6, 7, 7]])
    assert baselines.majority_accuracy(known, test) == 0.5  # 7: three of six that count, two of four
    assert (
        baselines.bigram_accuracy(known, test) == 0.75
    )  # 1→5 right and wrong, 2→7 right, 3 is new: 7, right


def test_majority_of_classes():
    known, test = batch(np.zeros((3, 9)), [0, 1, 1]), batch(np.zeros((4, 9)), [1, 1, 1, 0])
    assert baselines.majority_accuracy(known, test) == 0.75


def test_naive_bayes_tells_two_alphabets_apart():
    bayes = baselines.NaiveBayes(2)
    bayes.learn(b"aaab", 0)
    bayes.learn(b"zzzb", 1)
    assert [bayes.guess(document) for document in (b"aab", b"bzb", b"za" * 3 + b"z")] == [0, 1, 1]


def test_baselines_of_a_task_are_measured_once_and_remembered(tmp_path, monkeypatch):
    task = Copy(length=16, symbols=4, validation_examples=400, test_examples=400)
    measured = task.baselines(tmp_path)
    assert measured["chance"] == 0.25
    assert 0.15 < measured["majority"] < 0.35 and 0.15 < measured["bigram"] < 0.35
    monkeypatch.setattr(Copy, "measure_baselines", None)
    assert task.baselines(tmp_path) == measured


def test_guessing_the_value_not_yet_asked_for_scores_what_is_claimed():
    task = AssociativeRecall(length=32, pairs=4, vocabulary=64)
    shown = task.examples(0, np.arange(4000))
    random, hits = np.random.default_rng(0), []
    for inputs, targets, weights in zip(shown["inputs"], shown["targets"], shown["weights"], strict=True):
        left = dict(zip(inputs[:8:2], inputs[1:8:2], strict=True))
        for position in np.flatnonzero(weights):
            hits.append(random.choice(list(left.values())) == targets[position])
            del left[inputs[position]]
    assert np.mean(hits) == pytest.approx(task.guesses()["not yet asked"], abs=0.015)
