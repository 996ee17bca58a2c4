"""Hyena: gates around a convolution whose filter, as long as the sequence, is a function of the position."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from transformer_jax.attention.contract import Capability, Geometry
from transformer_jax.attention.convolution import ShortConvolution
from transformer_jax.attention.core import CoreMixer, linear_flops
from transformer_jax.attention.engines import long_convolution
from transformer_jax.errors import BadInput


class Hyena(CoreMixer):
    """Hyena hierarchy (arXiv:2302.10866), order 2, as its authors' code has it: y = x² ⊙ (h ∗ (x¹ ⊙ v)).

    Definition 3.1 (equation 4) has another long filter, on v alone, before x¹; the code, from which the
    published results are, has none there but the short convolution of `taps` taps that v, x¹ and x² all have.
    N·H channels are convolved each by itself; projections have no bias. The filter is h_t = e^(−αt) FFN(t)
    (equation 7): t = 1 is the model's `length`, α from 3 to 15 over the channels puts 1% at 1.5 or 0.3 of it
    and is not learned, and nothing is added to the window; the FFN has `bands` sines and cosines of t beside
    it, three layers of `filter_width` sines whose factor, `frequency` at the start, is learned. A skip D is
    h_0's own.

    No state is smaller than the past: decoding keeps every x¹ ⊙ v, reads all of it at every token, and
    evaluates the filter again. The error budget is that of the filter: each of its sines multiplies the
    roundings of the layer below by the frequency, so its products are of the highest precision.
    """

    name = "hyena"
    paper = "arXiv:2302.10866"
    family = "convolution"
    time = "T log T"
    state = "T"
    own_convolution = True
    small = {"bands": 2, "filter_width": 8}
    tolerance = {"float32": 1e-4, "bfloat16": 2e-2}
    capability = Capability(
        refused={
            "bidirectional": "its filters are causal; one that reaches to both sides is another mechanism.",
            "cross": "a convolution goes along one sequence.",
            "packing": "one FFT applies its filter to a whole row, and does not stop where a document ends.",
        },
        sequence="gathered",
    )

    def __init__(
        self,
        geometry: Geometry,
        *,
        taps: int = 3,
        bands: int = 16,
        filter_width: int = 64,
        frequency: float = 14.0,
        rngs: nnx.Rngs,
    ):
        if bands < 1 or filter_width < 1:
            raise BadInput(f"hyena bands={bands} and filter_width={filter_width} must be at least 1.")
        super().__init__(geometry)
        g, channels = geometry, self.mixed_heads
        # Three streams side by side: a cut would not meet their borders.
        self.inputs = self.linear(g.width, 3 * channels, rngs, axes="embed -")
        self.short = ShortConvolution(3 * channels, taps, dtype=g.dtype, rngs=rngs)
        self.out = self.joining(channels, rngs)
        self.bands = bands
        exact = jnp.promote_types(jnp.float32, jnp.dtype(g.dtype))
        layer = lambda inputs, outputs, bias: nnx.Linear(
            inputs, outputs, use_bias=bias, dtype=exact, precision="highest", rngs=rngs
        )
        self.first = layer(1 + 2 * bands, filter_width, True)
        self.second, self.third = (layer(filter_width, filter_width, True) for _ in range(2))
        self.last = layer(filter_width, channels, False)
        self.frequency = nnx.Param(jnp.full(filter_width, frequency))
        self.skip = nnx.Param(jax.random.normal(rngs.params(), (channels,)))

    @property
    def mixed_heads(self):
        return self.geometry.heads * self.geometry.head_size

    def filter(self, length: int) -> jax.Array:
        """h at 0 … length − 1, with the skip: (length, C)."""
        exact, longest = self.first.dtype, self.geometry.length
        n = np.arange(length)[:, None]
        t, f = n / max(longest - 1, 1), np.linspace(1e-4, max(self.bands - 1, 1e-4), self.bands)
        angles = 2 * np.pi * n / longest * f
        x = jnp.asarray(np.concatenate([t, np.cos(angles), -np.sin(angles)], axis=1), exact)
        for layer in (self.first, self.second, self.third):
            x = jnp.sin(self.frequency[...].astype(exact)[None] * layer(x))
        rate = np.linspace(-np.log(0.01) / 1.5, -np.log(0.01) / 0.3, self.mixed_heads)
        # Of all channels it is as large as a stream: computed in the program, and not a constant of it.
        time = jnp.arange(length, dtype=exact)[:, None] / max(longest - 1, 1)
        window = jnp.exp(-time * jnp.asarray(rate, exact)[None])
        return (self.last(x) * window).at[0].add(self.skip[...].astype(exact))

    def weights(self):
        return {"h": self.filter(self.geometry.length).T}

    def definition(self, v, x1, x2, h):
        """Section "Hyena matrices" at order 2: y = D_x² T_h D_x¹ v, of one channel: diagonal, Toeplitz (the
        paper's S_h) and diagonal matrices; equation 4 has another T_h before v."""
        lag = jnp.arange(len(v))[:, None] - jnp.arange(len(v))[None]
        T_h = jnp.where(lag >= 0, h[jnp.maximum(lag, 0)], 0)
        return x2 * (T_h @ (x1 * v))

    def streams(self, x, layout, state=None, context=None):
        projected, moved = self.short(self.inputs(x), layout, None if state is None else state["short"])
        x2, x1, v = jnp.split(projected[..., None], 3, axis=2)
        return {"v": v, "x1": x1, "x2": x2}, {"short": moved}

    def core(self, streams, layout, state):
        v, x1, x2 = (long_convolution.exact(streams[name][..., 0]) for name in ("v", "x1", "x2"))
        u, valid, length = x1 * v, layout.valid, v.shape[1]
        if valid is not None:
            u = jnp.where(valid[..., None], u, 0)
        if state is None:
            return (x2 * long_convolution.convolve(u, self.filter(length)))[..., None], {}
        h, count, past = self.filter(self.geometry.length), state["count"], state["past"]
        places = count[:, None] + jnp.arange(length)[None]
        rows = jnp.arange(len(count))[:, None]
        added = jnp.full_like(count, length) if layout.lengths is None else layout.lengths
        # Padding is stored nowhere: what is added there is 0.
        past = past.at[rows, places].add(u, mode="drop")
        if length == 1:
            y = long_convolution.at(past, h, count)[:, None]
        else:
            y = long_convolution.convolve(past, h)
            y = jnp.take_along_axis(y, places[..., None], axis=1, mode="clip")
        return (x2 * y)[..., None], {"past": past, "count": count + added.astype(count.dtype)}

    def finish(self, o, x):
        return self.out(o[..., 0].astype(x.dtype))

    def init_state(self, batch):
        past = jnp.zeros((batch, self.geometry.length, self.mixed_heads), self.first.dtype)
        count = jnp.zeros((batch,), jnp.int32)
        return {"past": past, "count": count, "short": self.short.init_state(batch)}

    def core_flops(self, batch, length):
        """Those of the filter, which the rows of a batch share; an FFT has no matrix products."""
        return linear_flops(length, self.first, self.second, self.third, self.last)

    def projection_flops(self, batch, length):
        return linear_flops(batch * length, self.inputs, self.out)
