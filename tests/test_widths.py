"""Widths that the program settles: a grid of them, and those at which variants cost the same."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import jax
import jax.numpy as jnp
import pytest

from transformer_jax.data.tasks.associative_recall import AssociativeRecall
from transformer_jax.data.tasks.list_ops import ListOps
from transformer_jax.errors import BadInput
from transformer_jax.experiment import Experiment, Grid, Match, Variant
from transformer_jax.model.config import Transformer
from transformer_jax.sweep.cells import plan
from transformer_jax.sweep.widths import AMOUNTS, settled, solve
from transformer_jax.train.config import Train
from transformer_jax.train.run import Run, build_model

MECHANISMS = ("full", "sliding_window", "linear", "gated_delta_net", "mamba", "hyena")


def make(**changes):
    settings = {
        "title": "t",
        "task": AssociativeRecall(length=64, pairs=4, vocabulary=64),
        "model": Transformer(width=64, heads=2, mlp="none"),
        "variants": MECHANISMS,
        "train": Train(steps=4, batch=4),
    }
    return Experiment(**{**settings, **changes})


def widths(experiment):
    return {v.label: v.resolve(experiment.model, experiment.train)[0].width for v in experiment.variants}


@pytest.mark.quick
@pytest.mark.parametrize("target", [1, 3, 100, 5_000, 5_001, 123_456, 1e9])
@pytest.mark.parametrize("power", [1, 2])
def test_the_search_finds_the_nearest_of_all_multiples(target, power):
    def amount(width):
        return width**power + 7 * width

    every = range(8, 8 * 500, 8)
    nearest = min(every, key=lambda width: abs(math.log(amount(width) / target)))
    found = solve(amount, target, step=8, most=2000)
    assert found == nearest or (found >= 2000 and amount(found) < target)


def test_parameters_are_made_equal_and_the_record_says_how_nearly():
    """Against models that are really built."""
    variants = ("full", "linear", "gated_delta_net")
    experiment, found = settled(make(variants=variants, match=Match(what="parameters")))
    json.dumps(found, allow_nan=False)
    counts = {}
    for label, width in widths(experiment).items():
        (run,) = [cell.run for cell in plan(experiment) if cell.label == label and cell.run.seed == 0]
        assert run.model.width == width == found["variants"][label]["width"]
        counts[label] = build_model(run).parameters()
    for label, count in counts.items():
        assert count == found["variants"][label]["amount"]
        assert count / counts["full"] == pytest.approx(found["variants"][label]["ratio"])
        assert abs(count / counts["full"] - 1) <= 0.1
    assert len(set(widths(experiment).values())) > 1  # at one width they would differ


def test_states_are_made_equal_in_bytes():
    variants = ("full", "linear", "gated_delta_net")
    experiment, found = settled(make(variants=variants, match=Match(what="state")))
    sizes = {}
    for label in variants:
        (run,) = [cell.run for cell in plan(experiment) if cell.label == label and cell.run.seed == 0]
        blocks = build_model(run).init_state(1)["blocks"]
        sizes[label] = sum(x.nbytes for x in jax.tree.leaves(blocks) if jnp.issubdtype(x, jnp.inexact))
        assert sizes[label] == found["variants"][label]["amount"]
    assert all(abs(size / sizes["full"] - 1) <= 0.1 for size in sizes.values())
    # Keys and values of both layers at the task's length, in float32.
    assert sizes["full"] == 2 * 2 * 64 * 64 * 4


def test_flops_are_made_equal_and_are_those_of_arithmetic():
    experiment, found = settled(make(match=Match(what="flops")))
    assert all(abs(each["ratio"] - 1) <= 0.1 for each in found["variants"].values())
    assert set(found["variants"]) == set(widths(experiment)) == set(MECHANISMS)


def test_the_flops_are_those_of_arithmetic():
    """Of full attention with an MLP: 12 D² weights a layer, the read-out, and scores and values over T keys,
    of which an execution may skip the masked ones; twice again for the two gradients."""
    T, V, layers = 32, 64, 2
    task = AssociativeRecall(length=T, pairs=4, vocabulary=V)
    for D in (128, 256):
        model = Transformer(width=D, layers=layers, mlp="gelu", remat="full")
        counted = AMOUNTS["flops"](Run(task=task, model=model, train=Train(steps=1, batch=1)))
        dense = 3 * 2 * (layers * 12 * D**2 + V * D)
        attention = 3 * 2 * layers * 2 * T * D
        assert dense + attention / 2 <= counted <= dense + 4 / 3 * attention  # scores may be computed again


@pytest.mark.quick
def test_what_cannot_be_matched_is_refused_with_cause_and_remedy():
    with pytest.raises(BadInput, match=r"'fnet': fnet has no decoding state to match: match parameters"):
        settled(
            make(task=ListOps(length=64, shortest=8), variants=("full", "fnet"), match=Match(what="state"))
        )
    own = Variant("linear", "wide", width=128)
    with pytest.raises(
        BadInput, match=r"'wide' comes no nearer to the parameters of 'full' than .* width 128"
    ):
        settled(make(variants=("full", own), match=Match(what="parameters")))
    allowed, found = settled(make(variants=("full", own), match=Match(what="parameters", within=9.0)))
    assert widths(allowed) == {"full": 64, "wide": 128} and found["variants"]["wide"]["ratio"] > 1.1
    state = Match(what="state")
    with pytest.raises(BadInput, match=r"'mamba' reaches the state of 'full' only at width 432, with 31 "):
        settled(make(variants=("full", "mamba"), match=state))
    allowed, _ = settled(make(variants=("full", "mamba"), match=replace(state, most_parameters=31.0)))
    assert widths(allowed)["mamba"] == 432
    with pytest.raises(BadInput, match="both decide the widths"):
        settled(make(tune=Grid(width=(8, 16)), match=Match(what="flops")))


@pytest.mark.quick
def test_a_grid_of_widths_makes_a_line_of_the_table_of_each():
    experiment, found = settled(
        make(variants=("full", Variant("linear", width=32)), tune=Grid(width=(16, 64), seeds=1))
    )
    assert found is None
    assert widths(experiment) == {"full, width 16": 16, "full, width 64": 64, "linear": 32}
    assert {cell.directory for cell in plan(experiment)} == {
        "cells/full-width-16_rate0.001_seed0",
        "cells/full-width-64_rate0.001_seed0",
        "cells/linear_rate0.001_seed0",
    }
    assert settled(experiment)[0] == experiment
    plain = make()
    assert settled(plain) == (plain, None)


@pytest.mark.quick
def test_the_command_line_asks_for_a_match():
    experiment = make().at("smoke", {"match": "state", "match.within": "0.2"})
    assert experiment.match == Match(what="state", within=0.2)
    assert any(line.startswith("--match.what state") for line in experiment.listed())
