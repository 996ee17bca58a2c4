"""Landmarks against plain products; Linformer, Nyströmformer and Performer at their limits."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from transformer_jax.attention.contract import Buffer, Geometry, Layout
from transformer_jax.attention.engines import landmarks
from transformer_jax.attention.variants.linformer import Linformer
from transformer_jax.attention.variants.nystrom import Nystrom
from transformer_jax.attention.variants.performer import Performer
from transformer_jax.errors import BadInput

pytestmark = pytest.mark.quick


def normal(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), jnp.float32)


def test_compressing_ignores_padding():
    x, projection = normal(2, 9, 2, 4), normal(9, 3, seed=1)
    valid = jnp.arange(9)[None] < jnp.array([[5], [9]])
    found = landmarks.compress(x, projection, valid)
    np.testing.assert_allclose(found[:1], landmarks.compress(x[:1, :5], projection[:5]), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(found[1:], landmarks.compress(x[1:], projection), rtol=1e-5, atol=1e-6)


def test_grouped_heads_read_their_own_landmarks():
    q, keys, values = normal(1, 5, 4, 8), normal(1, 3, 2, 8, seed=1), normal(1, 3, 2, 8, seed=2)
    o = landmarks.attend(q, keys, values)
    for n in range(4):
        weights = jax.nn.softmax(q[0, :, n] @ keys[0, :, n // 2].T / 8**0.5)
        np.testing.assert_allclose(o[0, :, n], weights @ values[0, :, n // 2], rtol=1e-5, atol=1e-6)


def test_linformer_refuses_a_context_longer_than_its_projections():
    mixer = Linformer(Geometry(width=8, length=16, causal=False), landmarks=4, rngs=nnx.Rngs(0))
    with pytest.raises(BadInput, match="raise length"):
        mixer(normal(1, 4, 8), Layout.plain(1, 4), context=normal(1, 17, 8))


def softmax_attention(q, k, v):
    return jax.nn.softmax(q @ k.T / q.shape[1] ** 0.5) @ v


def nystrom(**options):
    mixer = Nystrom(Geometry(width=8, causal=False), landmarks=9, rngs=nnx.Rngs(0), taps=3, **options)
    mixer.kernel[...] = 0 * mixer.kernel[...]
    return mixer


def test_nystrom_with_every_token_a_landmark_is_softmax_attention():
    q, k, v = (normal(1, 9, 1, 8, seed=seed) for seed in range(3))
    o, _ = nystrom(iterations=20).core({"q": q, "k": k, "v": v}, Layout.plain(1, 9), None)
    np.testing.assert_allclose(o[0, :, 0], softmax_attention(*(x[0, :, 0] for x in (q, k, v))), atol=1e-4)


def test_a_row_shorter_than_the_landmarks_has_its_tokens_as_landmarks():
    mixer, x = nystrom(), normal(2, 20, 8)
    y, _ = mixer(x, Layout(Layout.plain(2, 20).positions, None, jnp.array([4, 13])))
    for row, length in enumerate((4, 13)):
        alone, _ = mixer(x[row : row + 1, :length], Layout.plain(1, length))
        np.testing.assert_allclose(y[row : row + 1, :length], alone, rtol=1e-4, atol=1e-5)


def test_redrawing_changes_the_features_and_nothing_learned():
    mixer = Performer(Geometry(width=8, heads=2), features=6, rngs=nnx.Rngs(0))
    before = jax.tree.map(jnp.copy, nnx.split(mixer, Buffer, nnx.Param)[1:])
    mixer.renew(jnp.int32(1), jax.random.key(7), {})
    features, learned = nnx.split(mixer, Buffer, nnx.Param)[1:]
    moved = lambda a, b: [
        not np.array_equal(x, y) for x, y in zip(*map(jax.tree.leaves, (a, b)), strict=True)
    ]
    assert moved(features, before[0]) == [True]
    assert not any(moved(learned, before[1]))


def test_features_differ_between_stacked_layers_and_are_orthogonal_within_blocks():
    geometry = Geometry(width=8, heads=2)
    layers = jax.vmap(lambda rngs: Performer(geometry, features=6, rngs=rngs))(nnx.Rngs(0).split(3))
    projections = np.asarray(layers.projections[...])
    assert projections.shape == (3, 6, 4)
    assert np.abs(projections[0] - projections[1]).max() > 0.1
    gram = projections[0, :4] @ projections[0, :4].T
    np.testing.assert_allclose(gram - np.diag(np.diag(gram)), 0, atol=1e-5)
