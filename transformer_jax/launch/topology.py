"""What a request for accelerators means: how many hosts, with how many chips each, under which names."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from transformer_jax.errors import BadInput, unknown

FLAT = ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
DEEP = (
    "2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4", "4x4x8", "4x8x8", "8x8x8", "8x8x12", "8x8x16", "8x16x16"
)  # fmt: skip
"""Common slices in three dimensions, from small to large; others exist."""


@dataclass(frozen=True, kw_only=True)
class Generation:
    """A generation of TPUs, as Google Cloud names it, and what a chip of it can do.

    Attributes:
      gke: value of the node label cloud.google.com/gke-tpu-accelerator. runtime: TPU VM software version.
      vm: accelerator type up to the dash. counted: units per chip in the number behind it (TensorCores in
        v4 and v5p, chips in v5e and v6e). flat: two dimensions, of the shapes FLAT; else three.
      most: chips of a whole pod. compiler: the name that the TPU compiler has for it.
      flops: bfloat16 FLOP/s of a chip at most. bandwidth: bytes/s of its memory (HBM). network: bytes/s that
        it sends over all its links to other chips. source: where these stand.
      memory: bytes of HBM that the compiler gives a program (libtpu 0.0.52 says so when it refuses one).
      clock: cycles per second: `flops` over the products of the matrix units in one of the compiler's cycles.
      operations, stores: registers of 8×128 numbers that a core's vector unit computes and stores in a cycle
        (the capacities in the compiler's listings, libtpu 0.0.52).
    """

    gke: str
    vm: str
    runtime: str
    counted: int
    flat: bool
    most: int
    compiler: str
    flops: float
    bandwidth: float
    network: float
    source: str
    memory: float
    clock: float
    operations: int = 4
    stores: int = 1

    @property
    def cores(self) -> int:
        """Of a chip, that a program runs on as one device."""
        return 1 if self.flat else 2

    @property
    def links(self) -> int:
        """Of a chip to its neighbours: two along each dimension of the torus."""
        return 4 if self.flat else 6

    @property
    def shapes(self) -> tuple[str, ...]:
        """The usual slices, from small to large."""
        return FLAT if self.flat else DEEP


GIB = 2**30
GENERATIONS = {
    "v4": Generation(
        gke="tpu-v4-podslice", vm="v4", runtime="tpu-ubuntu2204-base", counted=2, flat=False, most=4096,
        compiler="v4", flops=275e12, bandwidth=1.2e12, network=6 * 50e9,
        source="cloud.google.com/tpu/docs/v4; links: arXiv:2304.01433, Table 4",
        memory=30.75 * GIB, clock=275e12 / (2 * 8 * 128 * 128), operations=2,
    ),
    "v5e": Generation(
        gke="tpu-v5-lite-podslice", vm="v5litepod", runtime="v2-alpha-tpuv5-lite", counted=1, flat=True,
        most=256, compiler="v5e", flops=197e12, bandwidth=819e9, network=400e9 / 2,
        source="cloud.google.com/tpu/docs/v5e",
        memory=15.75 * GIB, clock=197e12 / (2 * 4 * 128 * 128),
    ),
    "v5p": Generation(
        gke="tpu-v5p-slice", vm="v5p", runtime="v2-alpha-tpuv5", counted=2, flat=False, most=8960,
        compiler="v5", flops=459e12, bandwidth=2765e9, network=1200e9 / 2,
        source="cloud.google.com/tpu/docs/v5p",
        memory=95.73 * GIB, clock=459e12 / (2 * 8 * 128 * 128),
    ),
    # Two units of 256×256: at one product per cell and cycle, a matrix product of 8,192³ would come out of
    # the compiler's cycles at 1.4 times the peak. At two, at 0.70 of it (v4 0.93, v5e 0.88, v5p 0.90).
    "v6e": Generation(
        gke="tpu-v6e-slice", vm="v6e", runtime="v2-alpha-tpuv6e", counted=1, flat=True, most=256,
        compiler="v6e", flops=918e12, bandwidth=1638e9, network=800e9 / 2,
        source="cloud.google.com/tpu/docs/v6e",
        memory=31.24 * GIB, clock=918e12 / (2 * 2 * 2 * 256 * 256), stores=2,
    ),
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Topology:
    """One slice of TPUs, or a number of GPU hosts.

    Attributes:
      hosts: processes, one on each host. chips: accelerators of a host.
      generation: of the TPUs; None for GPUs. shape: of the slice, such as "4x4".
    """

    hosts: int
    chips: int
    generation: Generation | None = None
    shape: str = ""

    @property
    def accelerator(self) -> str:
        """The accelerator type of a TPU VM, such as v5litepod-16."""
        return f"{self.generation.vm}-{self.hosts * self.chips * self.generation.counted}"


def tpu(text: str) -> Topology:
    """A slice such as v5e:4x4. Raises BadInput where there is none like it."""
    kind, _, shape = text.partition(":")
    if kind not in GENERATIONS:
        raise unknown("TPU generation", kind, GENERATIONS)
    generation = GENERATIONS[kind]
    dimensions = [int(size) for size in shape.split("x")] if re.fullmatch(r"\d+(x\d+)*", shape) else []
    chips = math.prod(dimensions)
    if generation.flat and shape not in FLAT:
        raise BadInput(f"--topology {text}: a slice of {kind} has one of the shapes {', '.join(FLAT)}.")
    if not generation.flat and (len(dimensions) != 3 or chips % 4 or chips == 0):
        raise BadInput(
            f"--topology {text}: a slice of {kind} has three dimensions and a multiple of 4 chips, such as "
            f"{kind}:2x2x2."
        )
    per_host = chips if generation.flat and chips <= 8 else 4
    return Topology(hosts=chips // per_host, chips=per_host, generation=generation, shape=shape)


def nodes(text: str) -> Topology:
    """GPU hosts such as 4x8: four with eight each. Raises BadInput on anything else."""
    if not (found := re.fullmatch(r"([1-9]\d*)x([1-9]\d*)", text)):
        raise BadInput(f"--topology {text}: on SLURM write NODESxGPUS, such as 4x8.")
    return Topology(hosts=int(found[1]), chips=int(found[2]))
