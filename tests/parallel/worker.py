"""One process of several, for the tests of the group: worker.py PORT PROCESSES PROCESS SCENE."""

from __future__ import annotations

import os
import signal
import socket
import sys
import time

import jax
import numpy as np

from transformer_jax.errors import BadInput
from transformer_jax.parallel import group
from transformer_jax.parallel.processes import Location

LOST, STUCK = 3.0, 6.0


def steps():
    """Sums over all processes for ever, as training does; SIGTERM is heard between them."""
    heard = []
    signal.signal(signal.SIGTERM, lambda number, frame: heard.append(number))
    mesh = jax.sharding.Mesh(np.array(jax.devices()), ("data",))
    total = jax.jit(lambda x: x.sum(), out_shardings=jax.NamedSharding(mesh, jax.P()))
    rows = jax.NamedSharding(mesh, jax.P("data"))
    for step in range(100_000):
        if number := group.stop(heard[0] if heard else None):
            print(f"stopped at {step}", flush=True)
            raise SystemExit(128 + number)
        print(f"step {step}", flush=True)
        total(jax.make_array_from_process_local_data(rows, np.ones(1, np.float32))).block_until_ready()
        time.sleep(0.05)
        yield step


def abort(coordinator: str) -> None:
    """As JAX's runtime does it: from C, in a process whose coordinator `is there` or `is gone`."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        if coordinator == "is gone":
            server.close()
        group._explain_aborts(Location(source="flags", coordinator=address, processes=2, process=1))
        os.abort()


def main(port: str, processes: str, process: str, scene: str) -> None:
    if scene.startswith("abort"):
        abort(scene.removeprefix("abort: the coordinator "))
    here = Location(
        source="flags", coordinator=f"127.0.0.1:{port}", processes=int(processes), process=int(process)
    )
    with group.joined(here, arrive=120.0, lost=LOST, stuck=STUCK):
        if scene == "agree":
            print(group.agreed(lambda: {"said by": os.getpid()} if here.process == 0 else 1 / 0))
            group.agreed(lambda: (_ for _ in ()).throw(BadInput("Process 0 does not like it.")))
        for step in steps():
            if scene == "stuck" and here.process == 1 and step == 5:
                time.sleep(1000)
            if scene == "raise" and here.process == 1 and step == 5:
                raise RuntimeError("a fault of one")


if __name__ == "__main__":
    try:
        main(*sys.argv[1:])
    except BadInput as error:
        print(f"Error: {error}", file=sys.stderr)
        sys.exit(2)
