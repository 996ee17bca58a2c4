"""Runs a small sweep in a process of its own, which a test may kill: sweep_worker.py OUT DATA."""

from __future__ import annotations

import sys
from pathlib import Path

from transformer_jax.data.tasks.associative_recall import AssociativeRecall
from transformer_jax.experiment import Experiment, Grid
from transformer_jax.model.config import Transformer
from transformer_jax.sweep import sweep
from transformer_jax.train.config import Train


def go(out: Path, data: Path, say=print):
    """Four cells of one program, the last two of which differ from the first in weight decay."""
    experiment = Experiment(
        title="t",
        task=AssociativeRecall(length=16, pairs=2, vocabulary=16, validation_examples=8, test_examples=8),
        model=Transformer(width=8, mlp="none", dropout=0.1),
        variants=("full",),
        train=Train(steps=600, batch=4, log_every=10, evaluate_every=300, save_every=100),
        tune=Grid(weight_decay=(0.0, 0.5), seeds=2),
    )
    return sweep(experiment, out, data=data, about={"name": "t", "scale": "smoke"}, say=say)


if __name__ == "__main__":
    go(*map(Path, sys.argv[1:]))
