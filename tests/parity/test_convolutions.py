"""Convolutional mechanisms against the same equations on PyTorch's own layers."""

from __future__ import annotations

import pytest

from tests.parity.witness import D, T, agree, numpy, ours, put, put_linear, put_taps, randomized

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


class Hyena(torch.nn.Module):
    """Order 2: one long filter, in the authors' parameters, with the library's convolutions."""

    def __init__(self, longest, bands, width, taps):
        super().__init__()
        self.longest, self.bands = longest, bands
        self.inputs = torch.nn.Linear(D, 3 * D, bias=False)
        self.short = torch.nn.Conv1d(3 * D, 3 * D, taps, groups=3 * D, padding=taps - 1, bias=False)
        self.first = torch.nn.Linear(1 + 2 * bands, width)
        self.second, self.third = torch.nn.Linear(width, width), torch.nn.Linear(width, width)
        self.last = torch.nn.Linear(width, D, bias=False)
        self.out = torch.nn.Linear(D, D, bias=False)
        self.frequency = torch.nn.Parameter(torch.ones(width))
        self.skip = torch.nn.Parameter(torch.ones(D))

    def filter(self, length):
        n = torch.arange(length)[:, None]
        t = n / (self.longest - 1)
        waves = torch.exp(
            -2j * torch.pi * n / self.longest * torch.linspace(1e-4, self.bands - 1, self.bands)
        )
        x = torch.cat([t, waves.real, waves.imag], dim=1)
        for layer in (self.first, self.second, self.third):
            x = torch.sin(self.frequency * layer(x))
        log = torch.log(torch.tensor(0.01))
        return self.last(x) * torch.exp(t * torch.linspace(log / 1.5, log / 0.3, D))

    def forward(self, u):
        length = u.shape[1]
        x2, x1, v = self.short(self.inputs(u).mT)[..., :length].split(D, dim=1)
        v, h = x1 * v, self.filter(length).T
        spectrum = torch.fft.rfft(v, 2 * length) * torch.fft.rfft(h, 2 * length)
        convolved = torch.fft.irfft(spectrum, 2 * length)[..., :length] + self.skip[:, None] * v
        return self.out((x2 * convolved).mT)


def test_hyena():
    theirs = randomized(Hyena(longest=T, bands=3, width=10, taps=3))
    mixer = ours("hyena", bands=3, filter_width=10)
    for name in ("inputs", "out", "first", "second", "third", "last"):
        put_linear(getattr(mixer, name), getattr(theirs, name).weight)
    for name in ("first", "second", "third"):
        put(getattr(mixer, name).bias, numpy(getattr(theirs, name).bias))
    put(mixer.frequency, numpy(theirs.frequency))
    put(mixer.skip, numpy(theirs.skip))
    put_taps(mixer.short, theirs.short.weight)
    agree(mixer, theirs)
