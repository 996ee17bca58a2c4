"""Trains a toy run in a process of its own, which a test may kill: worker.py OUT DATA SAVE_EVERY STEPS."""

from __future__ import annotations

import sys

from tests.train.toy import toy_model, toy_run
from transformer_jax.store import place
from transformer_jax.train import loop


def long_run(save_every: int, steps: int):
    """Dropout, warm-up and accumulation on; stops for evaluation and saving at steps that do not coincide."""
    return toy_run(
        steps=steps,
        dropout=0.1,
        warmup=10,
        weight_decay=0.1,
        accumulate=2,
        log_every=7,
        evaluate_every=3 * save_every,
        save_every=save_every,
    )


if __name__ == "__main__":
    out, data, save_every, steps = sys.argv[1:]
    loop.build_model = toy_model
    loop.train(long_run(int(save_every), int(steps)), place(out), data=place(data), label="worker")
