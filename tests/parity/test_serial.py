"""Recurrent networks against those of PyTorch, and against numbers that the authors' code gave."""

from __future__ import annotations

import numpy as np
import pytest

from tests.parity.test_recurrences import D, H, N, agree, numpy, ours, put, put_linear, randomized

torch = pytest.importorskip("torch")


def test_lstm():
    theirs = randomized(torch.nn.LSTM(D, N * H, batch_first=True))
    mixer = ours("lstm")
    put_linear(mixer.inputs, theirs.weight_ih_l0)
    put(mixer.inputs.bias, numpy(theirs.bias_ih_l0 + theirs.bias_hh_l0))
    put(mixer.recurrent, numpy(theirs.weight_hh_l0).reshape(1, 4, N * H, N * H))
    put(mixer.out.kernel, np.eye(D))  # theirs has none
    agree(mixer, theirs)


def test_gru():
    theirs = randomized(torch.nn.GRU(D, N * H, batch_first=True))
    mixer = ours("gru")
    put_linear(mixer.inputs, theirs.weight_ih_l0)
    # r and z add up both of their biases; the candidate resets its second.
    second = numpy(theirs.bias_hh_l0)
    first = numpy(theirs.bias_ih_l0) + np.where(np.arange(3 * N * H) < 2 * N * H, second, 0)
    put(mixer.inputs.bias, first)
    put(mixer.recurrent_bias, second[None, 2 * N * H :])
    put(mixer.recurrent, numpy(theirs.weight_hh_l0).reshape(1, 3, N * H, N * H))
    put(mixer.out.kernel, np.eye(D))
    agree(mixer, theirs)
