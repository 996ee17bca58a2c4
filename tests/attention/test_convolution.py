"""Short convolutions against sums over taps, and the state of the causal one."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from transformer_jax.attention.catalogue import find
from transformer_jax.attention.contract import Layout
from transformer_jax.attention.convolution import ShortConvolution, centred
from transformer_jax.conformance.cost import flops_are_stated
from transformer_jax.conformance.subject import Subject
from transformer_jax.errors import BadInput

pytestmark = pytest.mark.quick
CHANNELS = 3


def by_taps(kernel, x, segments):
    """One row (T, C), as the class says it."""
    y = np.zeros_like(x)
    for t in range(len(x)):
        for j in range(len(kernel)):
            s = t - len(kernel) + 1 + j
            if s >= 0 and segments[s] == segments[t]:
                y[t] += kernel[j] * x[s]
    return y


def case(taps, length=13):
    convolution = ShortConvolution(CHANNELS, taps, dtype="float32", rngs=nnx.Rngs(0))
    x = np.random.default_rng(0).standard_normal((2, length, CHANNELS)).astype(np.float32)
    segments = np.stack([np.repeat([0, 1, 2], [5, 1, length - 6]), np.repeat([4, 7], [9, length - 9])])
    return convolution, x, segments.astype(np.int32)


@pytest.mark.parametrize("taps, length", [(1, 13), (2, 13), (4, 13), (20, 13), (20, 37), (20, 300)])
def test_it_is_a_causal_sum_over_taps_within_segments(taps, length):
    """By shifted copies, and of many taps by products."""
    convolution, x, segments = case(taps, length)
    kernel = np.asarray(convolution.kernel[...])
    plain = Layout.plain(2, length)
    for layout, named in ((plain, 0 * segments), (Layout(plain.positions, jnp.asarray(segments)), segments)):
        y, state = convolution(x, layout)
        wanted = np.stack([by_taps(kernel, *row) for row in zip(x, named, strict=True)])
        np.testing.assert_allclose(y, wanted, rtol=1e-5, atol=1e-6)
        assert state is None


def test_of_many_taps_a_prompt_and_what_follows_are_the_whole():
    convolution, x, _ = case(20, 60)
    whole, _ = convolution(x, Layout.plain(2, 60))
    state, pieces = convolution.init_state(2), []
    for begin, end in ((0, 40), (40, 41), (41, 60)):
        y, state = convolution(x[:, begin:end], Layout.plain(2, end - begin), state)
        pieces.append(y)
    np.testing.assert_allclose(jnp.concatenate(pieces, 1), whole, rtol=1e-5, atol=1e-6)


def test_products_of_many_taps_are_counted():
    flops_are_stated(Subject(find("h3"), True, {"part": 2, "state_size": 6, "taps": 20}))


@pytest.mark.parametrize("cuts", [(0, 13), (0, 4, 13), (0, 5, 6, 13), tuple(range(14))])
def test_cutting_changes_nothing(cuts):
    convolution, x, segments = case(4)
    positions = Layout.plain(2, 13).positions
    whole, _ = convolution(x, Layout(positions, jnp.asarray(segments)))
    state, pieces = convolution.init_state(2), []
    for begin, end in zip(cuts[:-1], cuts[1:], strict=True):
        part = Layout(positions[:, begin:end], jnp.asarray(segments[:, begin:end]))
        y, state = convolution(x[:, begin:end], part, state)
        pieces.append(y)
    np.testing.assert_allclose(jnp.concatenate(pieces, 1), whole, rtol=1e-5, atol=1e-6)


def test_padding_leaves_the_state_at_the_last_valid_inputs():
    convolution, x, _ = case(4)
    _, state = convolution(x[:, :5], Layout.plain(2, 5), convolution.init_state(2))
    np.testing.assert_array_equal(state["inputs"], x[:, 2:5])
    lengths = jnp.array([0, 2])
    _, after = convolution(x[:, 5:9], Layout(Layout.plain(2, 4).positions, None, lengths), state)
    np.testing.assert_array_equal(after["inputs"][0], x[0, 2:5])
    np.testing.assert_array_equal(after["inputs"][1], x[1, 4:7])


def test_decoding_without_segments_continues_the_open_one():
    convolution, x, segments = case(3)
    packed = Layout(Layout.plain(2, 10).positions, jnp.asarray(segments[:, :10]))
    _, state = convolution(x[:, :10], packed, convolution.init_state(2))
    y, _ = convolution(x[:, 10:11], Layout.plain(2, 1), state)
    whole, _ = convolution(x, Layout(Layout.plain(2, 13).positions, jnp.asarray(segments)))
    np.testing.assert_allclose(y, whole[:, 10:11], rtol=1e-5, atol=1e-6)


def test_no_taps_are_refused():
    with pytest.raises(BadInput, match="at least 1"):
        ShortConvolution(2, 0, rngs=nnx.Rngs(0))


def test_it_can_be_built_for_many_layers_at_once():
    stacked = jax.vmap(lambda rngs: ShortConvolution(2, 3, rngs=rngs))(nnx.Rngs(0).split(4))
    assert stacked.kernel[...].shape == (4, 3, 2)
    assert np.unique(stacked.kernel[...]).size == 24


@pytest.mark.parametrize("length", [1, 127, 128, 129, 300])
@pytest.mark.parametrize("taps", [1, 3, 33, 301])
def test_a_centred_convolution_is_numpys(length, taps):
    """Of fewer tokens than taps, of parts of a block and of several."""
    rng = np.random.default_rng(0)
    v, kernel = rng.standard_normal((2, length, 3, 2)), rng.standard_normal((3, taps))
    with jax.enable_x64(True):
        found = centred(jnp.asarray(v), jnp.asarray(kernel))
    for b, n, h in np.ndindex(2, 3, 2):
        wanted = np.correlate(np.pad(v[b, :, n, h], taps // 2), kernel[n], mode="valid")
        np.testing.assert_allclose(found[b, :, n, h], wanted, rtol=1e-12, atol=1e-12)
