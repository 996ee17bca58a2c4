"""The element-wise scan against a loop."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from transformer_jax.attention.engines.scan import scan

pytestmark = pytest.mark.quick


def streams(length, kind=float):
    draw = np.random.default_rng(0)
    a, b = draw.standard_normal((2, 2, length, 3))
    a[draw.random(a.shape) < 0.1] = 0
    if kind is complex:
        a, b = a * np.exp(2j * np.pi * draw.random(a.shape)), b + 1j * draw.standard_normal(b.shape)
    return a, b


def loop(a, b, h, starts, valid):
    hs = []
    for t in range(a.shape[1]):
        moved = np.where(starts[:, t, None], 0, a[:, t] * h) + b[:, t]
        h = np.where(valid[:, t, None], moved, h)
        hs.append(h)
    return np.stack(hs, 1), h


@pytest.mark.parametrize("kind", [float, complex])
@pytest.mark.parametrize(("length", "chunk"), [(1, 4), (20, 4), (23, 7), (10, 128)])
def test_the_scan_is_the_loop(kind, length, chunk):
    with jax.enable_x64(True):
        a, b = streams(length, kind)
        draw = np.random.default_rng(1)
        h, starts = draw.standard_normal((2, 3)), draw.random((2, length)) < 0.2
        valid = np.arange(length)[None] < np.array([[length], [length // 2]])
        starts &= valid
        found = scan(a, jnp.asarray(b), jnp.asarray(h), starts=starts, valid=valid, chunk=chunk)
        for x, y in zip(found, loop(a, b, h, starts, valid), strict=True):
            np.testing.assert_allclose(x, y, rtol=1e-12, atol=1e-12)


def test_the_gradient_is_that_of_the_loop():
    with jax.enable_x64(True):
        a, b = map(jnp.asarray, streams(12))

        def total(execute, a, b):
            return jnp.sum(jnp.sin(execute(a, b)))

        def plain(a, b):
            h, hs = jnp.zeros_like(a[:, 0]), []
            for t in range(a.shape[1]):
                h = a[:, t] * h + b[:, t]
                hs.append(h)
            return jnp.stack(hs, 1)

        found = jax.grad(lambda a, b: total(lambda a, b: scan(a, b, chunk=5)[0], a, b), argnums=(0, 1))(a, b)
        wanted = jax.grad(lambda a, b: total(plain, a, b), argnums=(0, 1))(a, b)
        for x, y in zip(found, wanted, strict=True):
            np.testing.assert_allclose(x, y, rtol=1e-10, atol=1e-12)


def test_cutting_changes_nothing():
    a, b = map(jnp.asarray, streams(19))
    whole, last = scan(a, b, chunk=4)
    first, h = scan(a[:, :7], b[:, :7], chunk=4)
    second, h = scan(a[:, 7:], b[:, 7:], h, chunk=4)
    np.testing.assert_allclose(jnp.concatenate([first, second], 1), whole, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(h, last, rtol=1e-5, atol=1e-6)
