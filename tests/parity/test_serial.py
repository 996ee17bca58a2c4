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
