"""Masked modelling: what is hidden, how much of it, and that an encoder can take it."""

from __future__ import annotations

import numpy as np
import pytest

from transformer_jax.data.tasks.masked_python_text import MASK, MaskedPythonText
from transformer_jax.errors import BadInput

pytestmark = pytest.mark.quick

TASK = MaskedPythonText(length=200)


def windows(count=400):
    return {"text": np.random.default_rng(0).integers(0, 256, (count, TASK.length + 1), np.uint8)}


def test_bert_shares_are_hidden_changed_and_kept():
    """15% carry loss; of those 80% show the mask, 10% another byte, 10% themselves."""
    columns = windows()
    batch = TASK.collate(columns)
    chosen = batch["weights"] == 1
    assert abs(chosen.mean() - 0.15) < 0.005
    inputs, targets = batch["inputs"][chosen], batch["targets"][chosen]
    assert abs(np.mean(inputs == MASK) - 0.8) < 0.01
    # A random byte is the true one once in 256.
    assert abs(np.mean(inputs == targets) - (0.1 + 0.1 / 256)) < 0.01
    np.testing.assert_array_equal(batch["inputs"][~chosen], batch["targets"][~chosen])
    np.testing.assert_array_equal(batch["targets"], columns["text"][:, :-1])


def test_masks_belong_to_the_window_alone():
    columns = windows(8)
    whole = TASK.collate(columns)
    some = TASK.collate({"text": columns["text"][[5, 2]]})
    for name in whole:
        np.testing.assert_array_equal(some[name], whole[name][[5, 2]])


def test_the_task_asks_for_an_encoder():
    assert not TASK.causal and TASK.target == "token" and TASK.vocabulary == TASK.outputs == 257
    with pytest.raises(BadInput, match="between 0 and 1"):
        MaskedPythonText(rate=1.0)
