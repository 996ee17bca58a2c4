"""Saves, damages and restores in one of several processes: PORT PROCESSES PROCESS DIRECTORY KINDS."""

from __future__ import annotations

import sys
from pathlib import Path

import jax
import numpy as np

from transformer_jax import checkpoint
from transformer_jax.checkpoint import Checkpoints
from transformer_jax.parallel import group
from transformer_jax.parallel.processes import Location


def parts(seed: int, mesh) -> dict:
    """A matrix of which each process holds some rows, and a vector of which each holds a copy. Their values
    do not compress, so that each process has a file for its rows."""
    rows, copy = (jax.NamedSharding(mesh, jax.P(*names)) for names in (["fsdp"], []))
    rng = np.random.default_rng(seed)
    w, b = (rng.random(shape, np.float32) for shape in ((8, 4096), (3,)))
    return {
        "model": {
            "w": jax.make_array_from_callback(w.shape, rows, lambda index: w[index]),
            "b": jax.make_array_from_callback(b.shape, copy, lambda index: b[index]),
        }
    }


def held(tree) -> list[np.ndarray]:
    """What this process holds of the arrays."""
    return [np.asarray(part.data) for x in jax.tree.leaves(tree) for part in x.addressable_shards]


def damage(kind: str, step: Path) -> None:
    """Something of a step that process 1 alone sees."""
    if kind == "rows":  # in the files: the rows of process 1, which the other one does not read
        if group.first():
            [path] = (path for path in step.rglob("ocdbt.process_1/d/*") if path.stat().st_size > 10_000)
            path.write_bytes(path.read_bytes()[:10])
        group.agreed(lambda: None)
    elif not group.first():
        read = checkpoint._read

        def ill(path, **items):
            found = read(path, **items)
            if path == step and kind == "record" and "record" in items:
                raise OSError("Input/output error")
            if path == step and kind == "copy" and "model" in items:
                found["model"]["b"] = parts(9, found["model"]["b"].sharding.mesh)["model"]["b"]
            return found

        checkpoint._read = ill


if __name__ == "__main__":
    port, processes, process = map(int, sys.argv[1:4])
    directory, kinds = Path(sys.argv[4]), sys.argv[5].split(",")
    here = Location(source="flags", coordinator=f"127.0.0.1:{port}", processes=processes, process=process)
    with group.joined(here, arrive=120.0):
        mesh = jax.sharding.Mesh(np.array(jax.devices()), ("fsdp",))
        read = checkpoint._read
        for kind in kinds:
            checkpoints = Checkpoints(directory / kind)
            for step in (1, 2):
                checkpoints.save(step, parts(step, mesh), {"step": step})
            checkpoints.wait()
            damage(kind, directory / kind / "2")
            found = checkpoints.restore(parts(0, mesh))
            pairs = zip(held(found.parts), held(parts(found.step, mesh)), strict=True)
            state = "sound" if all(np.array_equal(a, b) for a, b in pairs) else "not what was saved"
            print(f"{kind}: step {found.step}, {state}", flush=True)
            checkpoint._read = read
            checkpoints.close()
