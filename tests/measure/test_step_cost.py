"""What a run records of its cost is what its program has, and is had for nothing."""

from __future__ import annotations

import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from transformer_jax.data.tasks.associative_recall import AssociativeRecall
from transformer_jax.measure.step_cost import step_cost
from transformer_jax.model.config import Transformer
from transformer_jax.train.config import Train
from transformer_jax.train.loop import train
from transformer_jax.train.run import Run, build_model


@pytest.mark.quick
def test_a_loop_with_a_number_of_trips_as_argument_counts_once():
    def steps(x, n):
        return jax.lax.fori_loop(0, n, lambda i, x: x @ x, x)

    x = jnp.ones((8, 8))
    cost = step_cost(jax.jit(steps), x, np.int32(5))
    assert cost["flops"] == 2 * 8**3


def test_a_run_records_the_cost_of_its_step(tmp_path: Path):
    task = AssociativeRecall(length=32, pairs=2, vocabulary=64, validation_examples=8, test_examples=8)
    model = Transformer(layers=1, width=32, heads=2, mlp="none", embeddings="untied")
    run = Run(task=task, model=model, train=Train(steps=3, batch=4))
    took = []

    def timed(*call):
        began = time.perf_counter()
        found = step_cost(*call)
        took.append(time.perf_counter() - began)
        return found

    result = train(run, tmp_path / "run", data=tmp_path / "data", cost=timed)
    # Forward: four D×D projections, scores and values over a T×T square, the read-out; backward twice that.
    B, T, D, V = 4, 32, 32, 64
    forward = 2 * B * T * (4 * D * D + 2 * T * D + D * V)
    assert result["flops"] == pytest.approx(3 * forward, rel=0.15), "and what a backward pass computes again"
    assert result["temporaries"] > 0 and result["peak_memory"] is None, "of a CPU"
    assert took[0] < 1.0  # a compilation takes several seconds
    assert result["state_bytes"] == 4 * build_model(run).state_size()
    assert result["date"].startswith("20")
