"""The toy run of worker.py in one of several processes: PORT PROCESSES PROCESS OUT DATA SAVE_EVERY STEPS."""

from __future__ import annotations

import sys
from pathlib import Path

from tests.train.toy import toy_model
from tests.train.worker import long_run
from transformer_jax.parallel import group
from transformer_jax.parallel.processes import Location
from transformer_jax.train import loop

LOST = 3.0

if __name__ == "__main__":
    port, processes, process = map(int, sys.argv[1:4])
    out, data, save_every, steps = sys.argv[4:]
    loop.build_model = toy_model
    here = Location(source="flags", coordinator=f"127.0.0.1:{port}", processes=processes, process=process)
    with group.joined(here, lost=LOST):
        loop.train(long_run(int(save_every), int(steps)), Path(out), data=Path(data), label="worker")
