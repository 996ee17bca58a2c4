"""Buffers move in training, and there alone: redrawn features and routing's centroids, in the real model."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.train.toy import arrays
from transformer_jax.attention.contract import Layout
from transformer_jax.checkpoint import restore_latest
from transformer_jax.conformance.subject import jit
from transformer_jax.data.tasks.copy import Copy
from transformer_jax.errors import BadInput
from transformer_jax.model.config import Transformer, mechanism
from transformer_jax.train import loop
from transformer_jax.train.config import Train
from transformer_jax.train.optimizer import update_rule
from transformer_jax.train.progress import Silent
from transformer_jax.train.run import Run, build_model, claim
from transformer_jax.train.state import dismantle, initial
from transformer_jax.train.step import train_step

EVERY = 2


class Unordered(Copy):
    """Routing sees both directions."""

    causal: ClassVar[bool] = False


def run(redraw_every=EVERY, seed=0, **train) -> Run:
    """Two rounds of performer and routing, stacked and scanned."""
    mixers = (
        mechanism("performer", features=6, redraw_every=redraw_every),
        mechanism("routing", clusters=2, members=6, decay=0.9),
    )
    return Run(
        task=Unordered(length=12, symbols=5, validation_examples=8, test_examples=8),
        model=Transformer(mixers=mixers, layers=4, width=8, heads=2, mlp="none"),
        train=Train(**{"steps": 6, "batch": 8, "save_every": 3, "schedule": "constant"} | train),
        seed=seed,
    )


def buffers(rest) -> tuple[np.ndarray, np.ndarray]:
    """The random features (2 layers, 6, H) and the centroids (2 layers, N, clusters, H)."""
    (features,) = (value for name, value in rest.items() if name.endswith("projections"))
    (centroids,) = (value for name, value in rest.items() if name.endswith("centroids"))
    return np.asarray(features), np.asarray(centroids)


@cache
def stepper(redraw_every, accumulate):
    mine = run(redraw_every, accumulate=accumulate)
    skeleton, *_ = dismantle(build_model(mine))
    return jit(lambda state, batch: train_step(skeleton, mine.train, state, batch)[0])


@cache
def stepped(redraw_every=EVERY, seed=0, accumulate=1):
    """The states before and after each of five steps."""
    mine = run(redraw_every, seed)
    _, params, rest = dismantle(build_model(mine))
    states = [initial(params, rest, update_rule(mine.train), seed=seed, peak=1e-2, weight_decay=0.0)]
    for number in range(5):
        batch = mine.task.examples(seed, np.arange(8 * number, 8 * number + 8), number)
        states.append(stepper(redraw_every, accumulate)(states[-1], batch))
    return states


def test_features_are_drawn_anew_after_every_second_step_and_differ_between_layers():
    drawn = [buffers(state.rest)[0] for state in stepped()]
    moved = [bool((a != b).any()) for a, b in zip(drawn, drawn[1:], strict=False)]
    assert moved == [False, False, True, False, True]
    assert all(np.abs(one[0] - one[1]).max() > 0.1 for one in drawn)


def test_the_draws_follow_from_seed_and_step_alone():
    """Neither from the batch nor from what was drawn before."""
    model = build_model(run())
    mixer = jax.tree.map(lambda value: value[0], model.periods).blocks[0].mixer
    for step in (2, 4):
        mixer.renew(jnp.int32(step), jax.random.key(step), {})
    once = jax.tree.map(lambda value: value[1], model.periods).blocks[0].mixer
    once.renew(jnp.int32(4), jax.random.key(4), {})
    np.testing.assert_array_equal(mixer.projections[...], once.projections[...])
    assert (buffers(stepped()[5].rest)[0] != buffers(stepped(seed=1)[5].rest)[0]).all()


def test_without_redrawing_they_stay_and_training_is_another():
    states, never = stepped(), stepped(redraw_every=None)
    np.testing.assert_array_equal(buffers(never[0].rest)[0], buffers(never[5].rest)[0])
    pairs = zip(states, never, strict=True)
    same = [all((a.params[name] == b.params[name]).all() for name in a.params) for a, b in pairs]
    assert same == [True, True, True, True, False, False]


def test_centroids_follow_the_moving_average_of_every_layer():
    """Against the layers' own observations, made one layer at a time, outside scan and vmap."""
    before, after = stepped()[:2]
    mine = run()
    skeleton, *_ = dismantle(build_model(mine))
    model = skeleton.assemble(before.params, before.rest)
    batch = mine.task.examples(0, np.arange(8), 0)

    @jit
    def averages(tokens):
        layout = Layout.plain(*tokens.shape)
        x, found = model.embedded(tokens, layout), []
        for layer in range(2):
            for block in jax.tree.map(lambda value, layer=layer: value[layer], model.periods).blocks:
                seen = block.mixer.observe(block.mixer_norm(x), layout)
                x = block(x, layout)[0]
            found.append(0.9 * block.mixer.centroids[...] + 0.05 * seen["members"])
        return found

    wanted = averages(batch["inputs"])
    np.testing.assert_allclose(buffers(after.rest)[1], np.stack(wanted), rtol=1e-4, atol=1e-5)
    assert np.abs(buffers(before.rest)[1] - buffers(after.rest)[1]).max() > 0.05


@pytest.mark.slow
def test_microbatches_change_neither_draws_nor_centroids():
    whole, parts = stepped(), stepped(accumulate=4)
    for a, b in zip(whole, parts, strict=True):
        np.testing.assert_array_equal(buffers(a.rest)[0], buffers(b.rest)[0])
    # Sums of another order, in float32.
    np.testing.assert_allclose(buffers(whole[1].rest)[1], buffers(parts[1].rest)[1], rtol=1e-5, atol=1e-5)


def training(mine: Run, out, data) -> loop.Training:
    return loop.Training(mine, out, data=data, watch=Silent(), record=claim(mine, out))


def test_a_resumed_run_is_the_uninterrupted_one_and_evaluation_moves_nothing(tmp_path):
    mine, data = run(), tmp_path / "data"
    whole = loop.train(mine, tmp_path / "whole", data=data, progress=Silent())
    first = training(mine, tmp_path / "parts", data)
    first.advance()  # to step 3, where it would save
    before = arrays(first.state.rest)
    first.evaluate_validation()
    for a, b in zip(before, arrays(first.state.rest), strict=True):
        np.testing.assert_array_equal(a, b)
    first.evaluated = -1  # as the uninterrupted run, which evaluates at the end
    first.save()
    first.checkpoints.wait()
    first.close()
    parts = loop.train(mine, tmp_path / "parts", data=data, progress=Silent())
    assert parts["metrics"] == whole["metrics"]
    like = first.state.parts()
    a, b = (restore_latest(tmp_path / name / "checkpoints", like).parts for name in ("whole", "parts"))
    for x, y in zip(arrays(a), arrays(b), strict=True):
        np.testing.assert_array_equal(x, y)
    assert any((x != y).any() for x, y in zip(before, arrays(a["model"]["rest"]), strict=True))


@pytest.mark.quick
@pytest.mark.parametrize("name, options", [("performer", {"redraw_every": 0}), ("routing", {"decay": 1.5})])
def test_what_cannot_be_is_refused(name, options):
    mixer = replace(run().model, mixers=(mechanism(name, **options),))
    with pytest.raises(BadInput, match=next(iter(options))):
        build_model(replace(run(), model=mixer))
