"""How many instruction bundles a step of the recurrence kernel takes, by the compiler's own listing.

    python -m transformer_jax.kernels.bundles [v5e v5p v6e]

compiles the kernel for chips that need not be there (it wants libtpu, from the extra `tpu`) and prints, for
the plain and the decayed recurrence, chunk 256, head size 128, bfloat16, forward, per row and chunk:

- bundles: of the loop over the grid, divided by the rows of a step. A bundle is what the core issues in a
  cycle; what runs in the first chunk alone is counted as if it ran in each.
- floor: cycles in which all matrix units of the core, each with `edge`² multiply-adds a cycle, could do the
  products that the kernel does: 2 blocks · (128² (H + M) + 2 · 128 H M) / (units · edge²).
- triangle: the same for a chunk that is not cut into blocks with a state between them, of whose q kᵀ and A v
  only the blocks of 128 above the diagonal are left out: 3 · 128² (H + M) + 2 · 256 H M.

It is a listing, not a measurement: where fast memory or HBM keeps the core waiting, a step takes longer.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from transformer_jax.errors import BadInput, unknown

H = M = 128
MEGACORE = {"chip_config_name": "megacore", "chips_per_host_bounds": (2, 2, 1)}


@dataclass(frozen=True)
class Chip:
    """A TPU generation: a topology of one host, and the matrix units of a core."""

    topology: str
    units: int
    edge: int
    options: tuple[tuple[str, object], ...] = ()

    def cycles(self, multiply_adds: int) -> float:
        return multiply_adds / (self.units * self.edge**2)


CHIPS = {
    "v5e": Chip("v5e:2x2", 4, 128),
    "v5p": Chip("v5:2x2x1", 4, 128, tuple(MEGACORE.items())),
    "v6e": Chip("v6e:2x2", 2, 256),
}


def measured(chip: str, decayed: bool) -> dict[str, float]:
    """Bundles and floors of one row and chunk. Raises BadInput where libtpu is missing."""
    with tempfile.TemporaryDirectory() as directory:
        environment = os.environ | {
            "JAX_PLATFORMS": "cpu",
            "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
            "LIBTPU_INIT_ARGS": f"--xla_jf_dump_to={directory} --xla_jf_dump_llo_text=true",
        }
        # A process of its own: libtpu reads its options once.
        command = [
            sys.executable,
            "-c",
            f"from transformer_jax.kernels.bundles import compile_alone as go; go({chip!r}, {decayed})",
        ]
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        if done.returncode:
            last = (done.stderr.strip().splitlines() or ["it says nothing"])[-1]
            raise BadInput(
                f'The kernel did not compile for {chip} ({last}): install libtpu with ".[tpu]", or choose '
                f"one of {', '.join(CHIPS)}."
            )
        listed = loop_bundles(Path(directory))
    return reported(chip, listed)


def reported(chip: str, listed: int) -> dict[str, float]:
    from transformer_jax.kernels.recurrence import BLOCK, CHUNK, ROWS, products

    kind = CHIPS[chip]
    floor = kind.cycles(products(H, M, CHUNK // BLOCK))
    triangle = kind.cycles(3 * BLOCK**2 * (H + M) + 2 * CHUNK * H * M)
    bundles = listed / ROWS
    return {
        "bundles": bundles,
        "floor": floor,
        "ratio": bundles / floor,
        "triangle": triangle,
        "ratio_to_triangle": bundles / triangle,
    }


def compile_alone(chip: str, decayed: bool) -> None:
    """Compiles a program of nothing but the kernel."""
    import jax
    import jax.numpy as jnp
    import numpy as np
    from jax.experimental import topologies
    from jax.sharding import Mesh, NamedSharding, PartitionSpec

    from transformer_jax.kernels import recurrence

    kind = CHIPS[chip]
    topology = topologies.get_topology_desc(platform="tpu", topology_name=kind.topology, **dict(kind.options))
    mesh = Mesh(np.array(topology.devices[:1]), ("x",))
    where = NamedSharding(mesh, PartitionSpec())
    # Streams too large for fast memory: smaller ones the compiler would put there, and then copy.
    rows, length = 16 * recurrence.ROWS, 64 * recurrence.CHUNK
    stream = jax.ShapeDtypeStruct((rows, length, H), jnp.bfloat16, sharding=where)
    g = jax.ShapeDtypeStruct((rows, length), jnp.float32, sharding=where) if decayed else None
    S = jax.ShapeDtypeStruct((rows, H, M), jnp.float32, sharding=where)
    go = lambda q, k, v, g, S: recurrence.forward(False, q, k, v, g, S)
    jax.jit(go).lower(stream, stream, stream, g, S).compile()


def loop_bundles(directory: Path) -> int:
    """Bundles of the loop over the grid, from the compiler's listing in that directory."""
    [listing] = [
        file
        for file in directory.iterdir()
        if re.search(r"-recurrence[.\d]*-\d+-final_bundles\.txt$", file.name)
    ]
    # Each bundle is a line: its address, perhaps a mark, ":", ">" where it is inside of a loop, "{".
    return len(re.findall(r"^\s*(?:0x[0-9a-f]+|0)\s+(?:[A-Z]{2})?\s*: >", listing.read_text(), re.M))


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m transformer_jax.kernels.bundles")
    parser.add_argument("chips", nargs="*", default=list(CHIPS), metavar="CHIP", help=", ".join(CHIPS))
    parser.add_argument("--json", action="store_true")
    chosen = parser.parse_args(arguments)
    for chip in chosen.chips:
        if chip not in CHIPS:
            raise unknown("chip", chip, CHIPS)
    found = {
        chip: {kind: measured(chip, kind == "decayed") for kind in ("plain", "decayed")}
        for chip in chosen.chips
    }
    if chosen.json:
        print(json.dumps(found, indent=1))
        return 0
    print("chip  recurrence  bundles  floor  ratio  triangle  ratio")
    for chip, kinds in found.items():
        for kind, x in kinds.items():
            print(
                f"{chip:5} {kind:10} {x['bundles']:8.1f} {x['floor']:6.0f} {x['ratio']:6.2f} "
                f"{x['triangle']:9.0f} {x['ratio_to_triangle']:6.2f}"
            )
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except BadInput as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
