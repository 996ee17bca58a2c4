"""The error of random features is what it is called: held to the formulas of the paper, in float64."""

from __future__ import annotations

import jax
import numpy as np
import pytest
from flax import nnx

from transformer_jax.attention import catalogue
from transformer_jax.attention.contract import Geometry
from transformer_jax.errors import BadInput
from transformer_jax.measure.approximation import ESTIMATORS, Approximation

pytestmark = pytest.mark.quick

T, H, M = 64, 4, 16


def in_float64(estimator: str, draw: int, spread: float) -> dict[str, float]:
    """The row of a draw, from the features that the mechanism drew and nothing else of it."""
    mechanism, draws = ESTIMATORS[estimator]
    q, k, v = np.asarray(jax.random.normal(jax.random.key(draw), (3, T, H)), np.float64)
    q, k = spread * q, spread * k
    rngs = nnx.Rngs(jax.random.fold_in(jax.random.key(1), draw))
    geometry = Geometry(width=H, length=T, causal=False)
    built = catalogue.build(mechanism, geometry, features=M, draws=draws, rngs=rngs)
    omega = np.asarray(built.projections[...], np.float64)

    def phi(x):
        x = x / H**0.25
        u, half = x @ omega.T, (x**2).sum(1, keepdims=True) / 2
        if mechanism == "performer":
            return np.exp(u - half)
        return np.exp(half) * np.concatenate([np.sin(u), np.cos(u)], axis=1)

    exact, found = np.exp(q @ k.T / H**0.5), phi(q) @ phi(k).T
    A, A_hat = (x / x.sum(1, keepdims=True) for x in (exact, found))
    mse, off = ((A_hat @ v - A @ v) ** 2).mean(), (abs(A_hat - A) / A).reshape(-1)
    order, tenth = A.reshape(-1).argsort(), T * T // 10
    return {
        "mse": mse,
        "relative": mse / ((A @ v) ** 2).mean(),
        "small_entries": np.median(off[order[:tenth]]),
        "large_entries": np.median(off[order[-tenth:]]),
    }


@pytest.mark.parametrize("spread", [1.0, 0.5])
def test_errors_are_those_of_the_formulas(spread):
    parts = Approximation(length=T, head_size=H, features=(M,), draws=2, spread=spread).parts()
    rows = parts[f"m = {M}"](lambda line: None)
    assert len(rows) == 2 * len(ESTIMATORS)
    for row in rows:
        wanted = in_float64(row["estimator"], row["draw"], spread)
        # A trigonometric row is divided by a sum that nearly cancels: float32 keeps four digits of it.
        np.testing.assert_allclose([row[name] for name in wanted], list(wanted.values()), rtol=1e-3)


def test_parts_and_bad_sizes():
    assert list(Approximation(features=(4, 8), lengths=(64,)).parts()) == ["m = 4", "m = 8", "T = 64"]
    with pytest.raises(BadInput, match="at least 1"):
        Approximation(draws=0)
    with pytest.raises(BadInput, match="spread=-1.0 must be above 0"):
        Approximation(spread=-1.0)
