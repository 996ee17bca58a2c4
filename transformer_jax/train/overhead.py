"""What Python costs per training step: `python -m transformer_jax.train.overhead`.

The training loop as it is (data, dispatch, reading of metrics, records, progress) against the compiled
steps alone, called in a row and waited for at the end: with one step per call, and with as many as the
loop chooses. Rounds of both alternate, so that a noisy machine is noisy for both.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import jax
import numpy as np

from transformer_jax.data.tasks.associative_recall import AssociativeRecall
from transformer_jax.model.config import Transformer
from transformer_jax.train.config import Train
from transformer_jax.train.devices import stacked
from transformer_jax.train.loop import Training
from transformer_jax.train.progress import Silent
from transformer_jax.train.run import Run, claim


def overhead(
    *,
    layers: int = 12,
    width: int = 64,
    length: int = 32,
    batch: int = 4,
    steps: int = 128,
    rounds: int = 9,
    per_call: int | None = 1,
) -> dict[str, float]:
    """Milliseconds per step, medians over rounds.

    Args:
      per_call: training steps per call of the program; None: as the loop chooses.

    Returns:
      compiled: the program alone. loop: the training loop. overhead: median of their differences, each
        within one round. dispatch: time in which Python hands over one call, which the loop hides
        behind the call before it. arrays: number of arrays in the state.
    """
    run = Run(
        task=AssociativeRecall(length=length, pairs=2, vocabulary=64),
        model=Transformer(layers=layers, width=width, heads=4),
        train=Train(steps=10**9, batch=batch, steps_per_dispatch=per_call, save_every=steps),
    )
    with tempfile.TemporaryDirectory() as place:
        out = Path(place) / "run"
        record = claim(run, out)
        training = Training(run, out, data=Path(place) / "data", watch=Silent(), record=record)
        # `advance` trains to the next checkpoint, `steps` further on, and writes none. The first compiles.
        training.advance()
        most = training.feed.most
        stack = [run.task.examples(0, np.arange(i, i + batch)) for i in range(most)]
        stack = jax.device_put(jax.tree.map(lambda *x: np.stack(x), *stack), stacked(training.mesh))

        def call() -> jax.Array:
            training.state, sums = training.program.steps(training.state, stack, np.int32(most))
            return sums["loss"]

        def alone() -> None:
            for _ in range(steps // most):
                last = call()
            jax.block_until_ready(last)

        times: dict[str, list[float]] = {"compiled": [], "loop": []}
        for _ in range(rounds):
            for name, body, count in (
                ("compiled", alone, steps // most * most),
                ("loop", training.advance, steps),
            ):
                began = time.perf_counter()
                body()
                times[name].append((time.perf_counter() - began) / count * 1e3)
        handed = []
        for _ in range(50):
            began = time.perf_counter()
            last = call()
            handed.append((time.perf_counter() - began) * 1e3)
            jax.block_until_ready(last)
        training.close()
        return {
            **{name: statistics.median(values) for name, values in times.items()},
            "overhead": statistics.median(
                b - a for a, b in zip(times["compiled"], times["loop"], strict=True)
            ),
            "dispatch": statistics.median(handed),
            "arrays": len(jax.tree.leaves(training.state)),
        }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    sizes = {name: value for name, value in overhead.__kwdefaults__.items() if name != "per_call"}
    for name, value in sizes.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    chosen = vars(parser.parse_args())
    for how, per_call in (("one step per call", 1), ("steps per call chosen", None)):
        found = overhead(**chosen, per_call=per_call)
        print(
            f"{how}: compiled {found['compiled']:.3f} ms, training loop {found['loop']:.3f} ms per step, "
            f"overhead {found['overhead']:+.3f} ms "
            f"(Python hands a call over in {found['dispatch']:.3f} ms, {found['arrays']} arrays)"
        )


if __name__ == "__main__":
    main()
