"""How many instruction bundles a step of the recurrences' kernels takes, by the compiler's own listing.

    python -m transformer_jax.kernels.bundles [v5e v5p v6e]

compiles them for chips that need not be there (it wants libtpu, from the extra `tpu`) and prints, for the
recurrence and the delta rule, plain and decayed, chunk 256, head size 128, bfloat16, forward, per row and
chunk:

- bundles: of the loop over the grid, divided by the rows of a step. A bundle is what the core issues in a
  cycle; what runs in the first chunk alone is counted as if it ran in each.
- floor: cycles in which all matrix units of the core, each with `edge`² multiply-adds a cycle, could do the
  products that the kernel does: 2 blocks · (128² (H + M) + 2 · 128 H M) / (units · edge²); of the delta
  rule those of `delta.products`.
- triangle, of the recurrence: the same for a chunk that is not cut into blocks with a state between them, of
  whose q kᵀ and A v only the blocks of 128 above the diagonal are left out: 3 · 128² (H + M) + 2 · 256 H M.

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
from functools import partial
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


def measured(chip: str, decayed: bool, kernel: str = "recurrence") -> dict[str, float]:
    """Bundles and floors of one row and chunk of the `kernel`, "recurrence" or "delta". Raises BadInput where
    libtpu is missing."""
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
            "from transformer_jax.kernels.bundles import compile_alone as go; "
            f"go({chip!r}, {decayed}, {kernel!r})",
        ]
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        if done.returncode:
            last = (done.stderr.strip().splitlines() or ["it says nothing"])[-1]
            raise BadInput(
                f'The kernel did not compile for {chip} ({last}): install libtpu with ".[tpu]", or choose '
                f"one of {', '.join(CHIPS)}."
            )
        listed = loop_bundles(Path(directory), kernel)
    return reported(chip, listed, kernel)


def reported(chip: str, listed: int, kernel: str = "recurrence") -> dict[str, float]:
    from transformer_jax.kernels import delta
    from transformer_jax.kernels.recurrence import BLOCK, CHUNK, ROWS, products

    kind, bundles = CHIPS[chip], listed / (delta.ROWS if kernel == "delta" else ROWS)
    if kernel == "delta":
        floor = kind.cycles(delta.products(H, M, CHUNK // BLOCK))
        return {"bundles": bundles, "floor": floor, "ratio": bundles / floor}
    floor = kind.cycles(products(H, M, CHUNK // BLOCK))
    triangle = kind.cycles(3 * BLOCK**2 * (H + M) + 2 * CHUNK * H * M)
    return {
        "bundles": bundles,
        "floor": floor,
        "ratio": bundles / floor,
        "triangle": triangle,
        "ratio_to_triangle": bundles / triangle,
    }


def compile_alone(chip: str, decayed: bool, kernel: str = "recurrence") -> None:
    """Compiles a program of nothing but the kernel."""
    import jax
    import jax.numpy as jnp
    import numpy as np
    from jax.experimental import topologies
    from jax.sharding import Mesh, NamedSharding, PartitionSpec

    from transformer_jax.kernels import delta, recurrence

    kind = CHIPS[chip]
    topology = topologies.get_topology_desc(platform="tpu", topology_name=kind.topology, **dict(kind.options))
    mesh = Mesh(np.array(topology.devices[:1]), ("x",))
    where = NamedSharding(mesh, PartitionSpec())
    # Streams too large for fast memory: smaller ones the compiler would put there, and then copy.
    rows, length = 16 * recurrence.ROWS, 64 * recurrence.CHUNK
    stream = jax.ShapeDtypeStruct((rows, length, H), jnp.bfloat16, sharding=where)
    g = jax.ShapeDtypeStruct((rows, length), jnp.float32, sharding=where) if decayed else None
    S = jax.ShapeDtypeStruct((rows, H, M), jnp.float32, sharding=where)
    if kernel == "delta":
        go = lambda q, b, k, v, g, S: delta.forward(False, [q, b], k, v, g, S)
        streams = [stream] * 4
    else:
        go, streams = partial(recurrence.forward, False), [stream] * 3
    jax.jit(go).lower(*streams, g, S).compile()


def loop_bundles(directory: Path, kernel: str = "recurrence") -> int:
    """Bundles of the kernel's loop over the grid, from the compiler's listing in that directory."""
    [listing] = [
        file
        for file in directory.iterdir()
        if re.search(rf"-{kernel}[.\d]*-\d+-final_bundles\.txt$", file.name)
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
    kinds = {"plain": "recurrence", "decayed": "recurrence", "delta": "delta", "decayed delta": "delta"}
    found = {
        chip: {kind: measured(chip, "decayed" in kind, kernel) for kind, kernel in kinds.items()}
        for chip in chosen.chips
    }
    if chosen.json:
        print(json.dumps(found, indent=1))
        return 0
    print("chip  recurrence     bundles  floor  ratio  triangle  ratio")
    for chip, of_chip in found.items():
        for kind, x in of_chip.items():
            said = f"{chip:5} {kind:13} {x['bundles']:8.1f} {x['floor']:6.0f} {x['ratio']:6.2f}"
            print(f"{said} {x['triangle']:9.0f} {x['ratio_to_triangle']:6.2f}" if "triangle" in x else said)
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except BadInput as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
