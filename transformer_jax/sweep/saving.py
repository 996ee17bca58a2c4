"""What a sweep saves against its cells one by one: `python -m transformer_jax.sweep.saving`.

24 cells of the smallest recall task (quickstart: 2 variants, 4 rates, 3 seeds), every cell all of its steps:
once as one sweep, and as calls of `transformer-jax run` for one variant, one rate and one seed each, in a
process and a directory of their own. The separate runs are made for the first seed, half of them before the
sweep and half after it, and count once for each seed: another seed changes numbers, not work. Both write
their reports.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

VARIANTS = ("full", "linear")
RATES = ("1e-3", "3e-3", "5e-3", "8e-3")
SEEDS = 3


def saving(variants: Sequence[str], rates: Sequence[str], seeds: int, steps: int | None) -> dict[str, float]:
    """Seconds of the sweep, of all separate runs, and the one over the other.

    Args:
      steps: of every cell; None for as many as the experiment says.
    """
    length = [] if steps is None else ["--train.steps", str(steps), "--train.evaluate_every", str(steps)]
    with tempfile.TemporaryDirectory() as place:

        def run(name: str, *words: str) -> float:
            where = ["--out", str(Path(place, name)), "--data", str(Path(place, "data"))]
            command = [sys.executable, "-m", "transformer_jax", "run", "quickstart", *where]
            command += ["--train.stop_at", "none", *length, *words]
            began = time.perf_counter()
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
            return time.perf_counter() - began

        def alone(variant: str, rate: str) -> float:
            words = ["--variants", variant, "--tune.learning_rate", rate, "--tune.seeds", "1"]
            return run(f"{variant}-{rate}", *words)

        points = [(variant, rate) for variant in variants for rate in rates]
        separate = [alone(*point) for point in points[::2]]
        grid = ["--variants", ",".join(variants), "--tune.learning_rate", *rates, "--tune.seeds", str(seeds)]
        together = run("sweep", *grid)
        separate += [alone(*point) for point in points[1::2]]
    apart = seeds * sum(separate)
    return {"cells": seeds * len(points), "sweep": together, "separate": apart, "ratio": together / apart}


if __name__ == "__main__":
    options = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    options.add_argument("--steps", type=int, help="of every cell (default: as the experiment says)")
    found = saving(VARIANTS, RATES, SEEDS, options.parse_args().steps)
    sweep, apart = (f"{found[name]:.0f} s" for name in ("sweep", "separate"))
    print(f"{found['cells']:.0f} cells: {sweep} together, {apart} apart, ratio {found['ratio']:.2f}")
