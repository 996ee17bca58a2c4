"""What a request for accelerators means: how many hosts, with how many chips each, under which names."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from transformer_jax.errors import BadInput, unknown

FLAT = ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")


@dataclass(frozen=True, kw_only=True)
class Generation:
    """A generation of TPUs, as Google Cloud names it.

    Attributes:
      gke: value of the node label cloud.google.com/gke-tpu-accelerator. runtime: TPU VM software version.
      vm: accelerator type up to the dash. counted: units per chip in the number behind it (TensorCores in
        v4 and v5p, chips in v5e and v6e). flat: two dimensions, of the shapes FLAT; else three.
    """

    gke: str
    vm: str
    runtime: str
    counted: int
    flat: bool


GENERATIONS = {
    "v4": Generation(gke="tpu-v4-podslice", vm="v4", runtime="tpu-ubuntu2204-base", counted=2, flat=False),
    "v5e": Generation(
        gke="tpu-v5-lite-podslice", vm="v5litepod", runtime="v2-alpha-tpuv5-lite", counted=1, flat=True
    ),
    "v5p": Generation(gke="tpu-v5p-slice", vm="v5p", runtime="v2-alpha-tpuv5", counted=2, flat=False),
    "v6e": Generation(gke="tpu-v6e-slice", vm="v6e", runtime="v2-alpha-tpuv6e", counted=1, flat=True),
}


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
