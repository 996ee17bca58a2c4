"""In-context regression: data, curriculum, least squares; and a model that reads vectors and says numbers."""

from __future__ import annotations

import hashlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from transformer_jax.data.pipeline import checked, train_batches
from transformer_jax.data.tasks import LinearRegression
from transformer_jax.errors import BadInput
from transformer_jax.model.config import Transformer
from transformer_jax.train.config import Train
from transformer_jax.train.metrics import of_sums, reached
from transformer_jax.train.run import Run, build_model
from transformer_jax.train.step import score

pytestmark = pytest.mark.quick

SMALL = LinearRegression(length=14, dims=3, start_dims=3, start_points=7, test_examples=400)


PIN = "fade7f554c1c064ca0dbb5de85887f5b45f859fb0147c9f7284b38a920cec2eb"


def test_first_examples_never_change():
    # In float16: the last bits of a logarithm or of a sum may differ between machines.
    batch = SMALL.examples(0, np.arange(8))
    found = hashlib.sha256(batch["inputs"].astype("<f2").tobytes()).hexdigest()
    assert found == PIN


def test_values_are_one_linear_function_of_the_points():
    batch = SMALL.examples(0, np.arange(200))
    x, y = batch["inputs"][:, ::2], batch["inputs"][:, 1::2]
    assert not y[:, :, 1:].any()
    w = np.linalg.pinv(x.astype(float)) @ y[:, :, :1]
    np.testing.assert_allclose(x @ w, y[:, :, :1], atol=1e-4)  # float32 inputs of order 1
    np.testing.assert_array_equal(batch["targets"][:, ::2], y[:, :, 0])
    np.testing.assert_array_equal(batch["weights"], np.tile([1, 0], (200, 7)))
    for values in (x, w):
        assert abs(values.mean()) < 0.1 and abs(values.std() - 1) < 0.1


def test_the_curriculum_grows_to_the_whole_task(tmp_path):
    task = LinearRegression(length=20, dims=4, start_dims=2, start_points=3, grow_every=5)
    for step, dims, points in ((0, 2, 3), (4, 2, 3), (5, 3, 5), (12, 4, 7), (25, 4, 10)):
        batch = task.examples(0, np.arange(50), step)
        assert (batch["inputs"][:, ::2] != 0).any(axis=(0, 1)).tolist() == [True] * dims + [False] * (
            4 - dims
        )
        assert batch["weights"].sum(axis=1).tolist() == [points] * 50
        assert not batch["inputs"][:, 2 * points :].any()
    stream = train_batches(task, batch=3, seed=0, directory=tmp_path)
    sizes = [int(next(stream)["weights"][0].sum()) for _ in range(11)]
    assert sizes == [3] * 5 + [5] * 5 + [7]
    assert all((row["weights"].sum() == 10) for row in task.rows("validation", tmp_path))


def test_least_squares_is_exact_once_there_are_as_many_pairs_as_dimensions(tmp_path):
    found = {name: task.baselines(tmp_path) for name, task in SMALL.evaluations().items()}
    assert list(found) == ["0", "6"]
    for guesses in found.values():
        assert guesses["zero"] == pytest.approx(3, abs=0.6)
    assert found["0"]["least squares"] == found["0"]["zero"] and found["6"]["least squares"] < 1e-6
    # With k < d pairs the projection on what was not seen remains: d − k.
    two = LinearRegression(length=14, dims=3, asked=2, test_examples=2000).baselines(tmp_path)
    assert two["least squares"] == pytest.approx(1, abs=0.15)


def test_squared_error_is_the_loss_of_real_targets():
    random = np.random.default_rng(0)
    said, true = random.normal(size=(2, 3, 1)).astype("f4"), random.normal(size=(2, 3)).astype("f4")
    weights = np.array([[1, 0, 1], [0, 0, 1]], "f4")
    sums = score(jnp.asarray(said), {"targets": jnp.asarray(true), "weights": jnp.asarray(weights)})
    expected = ((said[..., 0] - true) ** 2)[weights > 0].mean()
    metrics = of_sums({name: float(value) for name, value in sums.items()}, "squared_error")
    assert metrics == {"loss": pytest.approx(expected), "squared_error": pytest.approx(expected)}
    assert reached(metrics, "squared_error", 100.0) and not reached(metrics, "squared_error", 0.0)


def test_a_model_reads_vectors_linearly_and_learns():
    run = Run(
        task=SMALL,
        model=Transformer(layers=1, width=16, embeddings="untied"),
        train=Train(steps=1, batch=4),
    )
    batch = {name: jnp.asarray(value) for name, value in SMALL.examples(0, np.arange(4)).items()}

    @jax.jit
    def slope(key):
        model = build_model(run, key)
        assert model.embed.kernel.shape == (3, 16)
        graph, params, rest = nnx.split(model, nnx.Param, ...)

        def loss(params):
            logits, _ = nnx.merge(graph, params, rest)(batch["inputs"])
            assert logits.shape == (4, 14, 1)
            return score(logits, batch)["loss"]

        return jax.grad(loss)(params)["embed"]

    # Every number of a vector moves the loss.
    assert all(float(jnp.abs(leaf).min()) > 0 for leaf in jax.tree.leaves(slope(jax.random.key(0))))


def test_what_makes_no_regression_is_refused():
    with pytest.raises(BadInput, match="odd"):
        LinearRegression(length=83)
    with pytest.raises(BadInput, match="0 to 40 pairs"):
        LinearRegression(asked=41)
    batch = SMALL.examples(0, np.arange(2))
    batch["inputs"][1, 1, 0] = np.nan
    with pytest.raises(BadInput, match="not finite"):
        checked(SMALL, batch)
    with pytest.raises(BadInput, match="untied"):
        run = Run(task=SMALL, model=Transformer(), train=Train(steps=1, batch=4))
        jax.eval_shape(lambda key: nnx.split(build_model(run, key))[1], jax.random.key(0))
