"""Recurrent networks against those of PyTorch, and against numbers that the authors' code gave."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.parity.witness import D, H, N, agree, numpy, ours, put, put_linear, randomized
from transformer_jax.attention.contract import Layout

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


SLSTM = [
    [-0.206418, -0.661375, 0.071728, -0.933986, -0.637999, -0.074885],
    [-0.029987, -0.894617, -0.503225, -0.52871, -0.093219, -0.066935],
    [-0.684936, 0.23519, -0.048964, -0.034997, -0.09759, 0.560399],
    [0.046265, -0.054674, 0.781042, -0.216986, -0.018557, 0.441497],
    [0.166851, -0.029062, -0.063665, -0.042557, -0.007231, 0.027677],
    [0.257602, 0.246149, -0.329869, -0.818542, -0.877515, 0.149812],
    [0.100323, 0.063524, 0.03208, -0.307249, 0.024285, -0.003656],
]
"""h (T, heads · size) of the plain cell in github.com/NX-AI/xlstm, in float64 on the inputs of the test."""


def test_slstm():
    length, heads, size = 7, 2, 3
    inputs = 3 * np.sin(np.arange(length * 4 * heads * size) ** 2.0).reshape(1, length, 4, heads, size)
    recurrent = np.cos(np.arange(heads * 4 * size * size) ** 2.0).reshape(heads, 4, size, size)
    with jax.enable_x64(True):
        mixer = ours("slstm", heads=heads, size=size)
        mixer.recurrent[...] = jnp.asarray(recurrent)
        gates = {gate: jnp.asarray(inputs[:, :, n]) for n, gate in enumerate("ifzo")}
        h, _ = mixer.core(gates, Layout.plain(1, length), None)
    np.testing.assert_allclose(h.reshape(length, -1), SLSTM, atol=1e-6)
