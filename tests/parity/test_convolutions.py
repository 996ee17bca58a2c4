"""Convolutional mechanisms against the same equations on PyTorch's own layers."""

from __future__ import annotations

import pytest

from tests.parity.test_recurrences import D, agree, numpy, ours, put, put_linear, put_taps, randomized

torch = pytest.importorskip("torch")


class BaseConv(torch.nn.Module):
    """Zoology's equation, with the library's convolution."""

    def __init__(self, taps):
        super().__init__()
        self.projection = torch.nn.Linear(D, D)
        self.convolution = torch.nn.Conv1d(D, D, taps, groups=D, padding=taps - 1)

    def forward(self, u):
        convolved = self.convolution(u.mT)[..., : u.shape[1]].mT
        return self.projection(u) * convolved


def test_base_conv():
    theirs = randomized(BaseConv(taps=5))
    mixer = ours("base_conv", taps=5)
    put_linear(mixer.projection, theirs.projection.weight)
    put(mixer.projection.bias, numpy(theirs.projection.bias))
    put_taps(mixer.convolution, theirs.convolution.weight)
    put(mixer.bias, numpy(theirs.convolution.bias))
    agree(mixer, theirs)
