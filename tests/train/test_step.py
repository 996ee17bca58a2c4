"""The step: what is summed, what is divided, what is returned, and that it is compiled once."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.train.toy import arrays, toy_model, toy_run
from transformer_jax.parallel.mesh import make_mesh
from transformer_jax.train.devices import stacked
from transformer_jax.train.optimizer import decayed, learning_rate, update_rule
from transformer_jax.train.state import dismantle, initial
from transformer_jax.train.step import forward, program, score, started, train_step

pytestmark = pytest.mark.quick


def begin(run, dtype=None):
    skeleton, params, rest = dismantle(toy_model(run))
    if dtype is not None:
        params = jax.tree.map(lambda x: x.astype(dtype), params)
    numbers = {"peak": run.train.learning_rate, "weight_decay": run.train.weight_decay}
    return skeleton, initial(params, rest, update_rule(run.train), seed=run.seed, **numbers)


def stepper(skeleton, run):
    return jax.jit(lambda state, batch: train_step(skeleton, run.train, state, batch))


def batch(run, step=0, rows=None):
    size = rows or run.train.batch
    return run.task.examples(run.seed, np.arange(step * size, (step + 1) * size), step)


def test_score_is_a_weighted_sum():
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(2, 3, 5)).astype(np.float32)
    targets, weights = rng.integers(0, 5, (2, 3)), rng.random((2, 3)).astype(np.float32)
    sums = score(jnp.asarray(logits), {"targets": targets, "weights": weights})
    p = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    loss = -np.log(np.take_along_axis(p, targets[..., None], -1)[..., 0])
    np.testing.assert_allclose(sums["loss"], (loss * weights).sum(), rtol=1e-5)
    np.testing.assert_allclose(sums["correct"], ((logits.argmax(-1) == targets) * weights).sum(), rtol=1e-6)
    np.testing.assert_allclose(sums["weight"], weights.sum(), rtol=1e-6)


def test_score_takes_one_target_per_sequence():
    sums = score(jnp.array([[2.0, 1.0], [0.0, 3.0]]), {"targets": np.array([0, 0]), "weights": np.ones(2)})
    assert sums["correct"] == 1 and sums["weight"] == 2


def test_equal_logits_are_no_hit():
    sums = score(jnp.zeros((4, 3)), {"targets": np.zeros(4, np.int32), "weights": np.ones(4)})
    assert sums["correct"] == 0


def test_targets_without_weight_do_not_matter():
    run = toy_run()
    skeleton, state = begin(run)
    data = batch(run)
    changed = data | {"targets": np.where(data["weights"] == 0, 3, data["targets"]).astype(np.int32)}
    assert (changed["targets"] != data["targets"]).any()
    sums = jax.jit(lambda batch: forward(skeleton, state.params, state.rest, batch))
    assert jax.device_get(sums(data)) == jax.device_get(sums(changed))


@pytest.mark.parametrize("microbatches", [2, 8])
def test_accumulation_is_the_whole_batch(microbatches):
    """In float64, with weights spread unevenly: a mean of microbatch means would differ."""
    with jax.enable_x64(True):
        whole, parts = (toy_run(optimizer="sgd", clip=None, accumulate=n) for n in (1, microbatches))
        data = batch(whole)
        data["weights"] = data["weights"] * np.linspace(0, 1, 8, dtype=np.float32)[:, None]
        results = []
        for run in (whole, parts):
            skeleton, state = begin(run, jnp.float64)
            step = stepper(skeleton, run)
            for _ in range(3):
                state, sums = step(state, data)
            results.append((state, sums))
        (a, sums_a), (b, sums_b) = results
        for name in a.params:
            np.testing.assert_allclose(a.params[name], b.params[name], rtol=0, atol=1e-12, err_msg=name)
        for name in sums_a:
            # Optax sums the squares of a norm in float32.
            tolerance = 1e-6 if name == "gradient_norm" else 1e-11
            np.testing.assert_allclose(sums_a[name], sums_b[name], rtol=tolerance, err_msg=name)
        assert int(b.rest["calls"]) == 3 * microbatches and int(a.rest["calls"]) == 3


def test_the_gradient_is_that_of_the_mean():
    with jax.enable_x64(True):
        run = toy_run(optimizer="sgd", b1=0.0, clip=None, schedule="constant")
        skeleton, state = begin(run, jnp.float64)
        data = batch(run)

        def mean(params):
            sums = forward(skeleton, params, state.rest, data)
            return sums["loss"] / sums["weight"]

        slope = jax.jit(jax.grad(mean))(state.params)
        after, sums = stepper(skeleton, run)(state, data)
        for name, value in after.params.items():
            expected = state.params[name] - float(state.peak) * slope[name]
            np.testing.assert_allclose(value, expected, atol=1e-12)
        norm = np.sqrt(sum((np.asarray(g) ** 2).sum() for g in slope.values()))
        np.testing.assert_allclose(sums["gradient_norm"], norm, rtol=1e-6)


def test_a_batch_without_loss_changes_nothing():
    run = toy_run(weight_decay=0.0)
    skeleton, state = begin(run)
    data = batch(run)
    data["weights"] = np.zeros_like(data["weights"])
    after, sums = stepper(skeleton, run)(state, data)
    for name in state.params:
        np.testing.assert_array_equal(after.params[name], state.params[name])
    assert sums["loss"] == 0 and sums["gradient_norm"] == 0


def run_program(run, per_call, steps=16):
    mesh = make_mesh(run.train.mesh)
    compiled = program(dismantle(toy_model(run))[0], run.train, mesh)
    state, sums = started(toy_model, run, mesh), []
    for first in range(0, steps, per_call):
        stack = [batch(run, step) for step in range(first, first + per_call)]
        stack = jax.device_put(jax.tree.map(lambda *x: np.stack(x), *stack), stacked(mesh))
        state, found = compiled.steps(state, stack, np.int32(per_call))
        sums.append(jax.device_get(found))
    return compiled, state, jax.tree.map(lambda *x: np.concatenate(x), *sums)


def compare_steps_per_call():
    run = toy_run(dropout=0.2, weight_decay=0.1, warmup=3)
    _, one, sums_one = run_program(run, 1)
    _, eight, sums_eight = run_program(run, 8)
    assert int(one.step) == 16
    for a, b in zip(arrays(one), arrays(eight), strict=True):
        np.testing.assert_array_equal(a, b)
    for name in sums_one:
        np.testing.assert_array_equal(sums_one[name], sums_eight[name])


def test_steps_per_call_change_no_bit(as_for_users):
    as_for_users(compare_steps_per_call)


def test_dropout_is_drawn_anew_at_each_step_and_off_in_evaluation():
    run = toy_run(dropout=0.5)
    skeleton, state = begin(run)
    data = batch(run)
    step = stepper(skeleton, run)
    first, again, later = (step(state._replace(step=jnp.int32(n)), data)[1] for n in (0, 0, 1))
    plain = forward(skeleton, state.params, state.rest, data)
    assert first["loss"] == again["loss"]
    assert len({float(first["loss"]), float(later["loss"]), float(plain["loss"])}) == 3


def test_rates_and_seeds_share_one_compiled_program():
    compiled, *_ = run_program(toy_run(seed=0, learning_rate=1e-2), 4)
    # Counted from here on: another test may have run the same program with other shapes.
    programs = compiled.steps._cache_size()
    other, *_ = run_program(toy_run(seed=5, learning_rate=3e-3), 4)
    assert compiled is other and compiled.steps._cache_size() == programs


def test_rates_are_not_confused_by_the_shared_program():
    _, slow, sums = run_program(toy_run(learning_rate=1e-3, schedule="constant"), 4)
    _, fast, more = run_program(toy_run(learning_rate=1e-2, schedule="constant"), 4)
    np.testing.assert_allclose(sums["learning_rate"], 1e-3, rtol=1e-6)
    np.testing.assert_allclose(more["learning_rate"], 1e-2, rtol=1e-6)
    assert any((np.asarray(slow.params[n]) != np.asarray(fast.params[n])).any() for n in slow.params)


def test_weight_decays_share_one_program_and_act_as_constants_would():
    """Each against the step whose rule has the number in it."""
    settings = {"schedule": "constant", "clip": None}
    numbers = (0.0, 0.1, 0.4)
    found = [run_program(toy_run(weight_decay=number, **settings), 4) for number in numbers]
    assert len({id(compiled) for compiled, *_ in found}) == 1
    for number, (_, after, _) in zip(numbers, found, strict=True):
        run = toy_run(weight_decay=number, **settings)
        skeleton, state = begin(run)
        rule = update_rule(run.train)

        @jax.jit
        def step(params, optimizer, batch, skeleton=skeleton, rest=state.rest, rule=rule):
            def mean(params):
                sums = forward(skeleton, params, rest, batch)
                return sums["loss"] / sums["weight"]

            updates, optimizer = rule.update(jax.grad(mean)(params), optimizer, params)
            return jax.tree.map(lambda p, u: p + 1e-2 * u, params, updates), optimizer

        params, optimizer = state.params, state.optimizer
        for i in range(16):
            params, optimizer = step(params, optimizer, batch(run, i))
        for name in params:
            np.testing.assert_allclose(after.params[name], params[name], rtol=1e-4, atol=1e-6, err_msg=name)


@pytest.mark.parametrize(
    "settings, at",
    [
        ({"schedule": "constant"}, {0: 1, 19: 1}),
        ({"schedule": "linear"}, {0: 1, 10: 0.5, 20: 0}),
        ({"schedule": "cosine"}, {0: 1, 10: 0.5, 20: 0}),
        ({"schedule": "constant", "warmup": 4}, {0: 0.25, 1: 0.5, 3: 1, 4: 1, 19: 1}),
        ({"schedule": "drop", "drop_at": 7}, {0: 1, 6: 1, 7: 0.1, 19: 0.1}),
        ({"schedule": "drop", "drop_at": 7, "warmup": 4}, {0: 0.25, 3: 1, 6: 1, 7: 0.1, 19: 0.1}),
        ({"schedule": "linear", "warmup": 10}, {0: 0.1, 9: 1, 10: 1, 15: 0.5, 20: 0}),
        ({"schedule": "cosine", "warmup": 1}, {0: 1, 1: 1, 20: 0}),
    ],
)
def test_learning_rate(settings, at):
    run = toy_run(steps=20, **settings)
    for step, factor in at.items():
        rate = learning_rate(run.train, jnp.int32(step), jnp.float32(0.5))
        np.testing.assert_allclose(rate, 0.5 * factor, atol=1e-6, err_msg=str(step))


@pytest.mark.parametrize("optimizer", ["adamw", "adam", "nadamw", "radam", "lion", "sgd"])
def test_every_optimizer_lowers_the_loss(optimizer):
    run = toy_run(optimizer=optimizer, learning_rate=3e-2 if optimizer != "lion" else 3e-3, steps=16)
    skeleton, state = begin(run)
    data, losses, step = batch(run), [], stepper(skeleton, run)
    for _ in range(16):
        state, sums = step(state, data)
        losses.append(float(sums["loss"]))
    assert losses[-1] < losses[0]


def test_weight_decay_acts_on_matrices_only():
    run = toy_run(weight_decay=0.5, schedule="constant", learning_rate=0.1)
    skeleton, state = begin(run)
    data = batch(run)
    data["weights"] = np.zeros_like(data["weights"])  # no gradient: decay alone moves
    params = jax.tree.map(lambda x: x + 1, state.params)
    after, _ = stepper(skeleton, run)(state._replace(params=params), data)
    shrunk = {name for name in params if np.any(np.asarray(after.params[name]) != np.asarray(params[name]))}
    assert shrunk == {"embed.embedding", "hidden.kernel", "out.kernel"}
    np.testing.assert_allclose(after.params["out.kernel"], params["out.kernel"] * 0.95, rtol=1e-6)
    assert not decayed("periods.blocks.0.mixer.rate") and decayed("periods.blocks.0.mixer.query.kernel")
