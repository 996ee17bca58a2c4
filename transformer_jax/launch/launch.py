"""`launch`: the command of a run, put into the form that a cluster takes.

The command inside is the one that is run by hand; a restart continues what is there. A failure ends with
exit code 1 or 2 and stays; PREEMPTED and LOST (`transformer_jax.parallel.group`) are started again.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformer_jax.errors import BadInput
from transformer_jax.launch.topology import Topology, nodes, tpu
from transformer_jax.parallel.group import ABORTED, GRACE, LOST, PREEMPTED

PLACES = {"tpu-vm": "tpu-vm.sh", "gke": "gke.yaml", "kubeflow": "kubeflow.yaml", "slurm": "slurm.sh"}
GRACE_SECONDS = 300
SPOT_SECONDS = 30  # that a spot node has, whatever its manifest says
RESTARTS = 100


@dataclass(frozen=True, kw_only=True)
class Launch:
    """Where a run goes.

    Attributes:
      on: one of PLACES. topology: a slice such as v5e:4x4; on slurm NODESxGPUS. slices: of TPUs, on gke.
      run: the words of the command line behind `python -m transformer_jax`. out: its directory of results.
      name: of the job. image: of the container (gke, kubeflow). zone: of Google Cloud (tpu-vm).
      spot: whether the machines may be preempted. time: limit of a job (slurm), [DAYS-]HH:MM:SS.
      grace: seconds from SIGTERM to the end; a run is told, and says so where it would not hold two saves.
    """

    on: str
    topology: str
    run: Sequence[str]
    out: str
    name: str
    slices: int = 1
    image: str | None = None
    zone: str | None = None
    spot: bool = False
    time: str = "24:00:00"
    grace: int = GRACE_SECONDS


def written(launch: Launch) -> str:
    """The script or manifest. Raises BadInput where something is missing or does not fit."""
    topology = nodes(launch.topology) if launch.on == "slurm" else tpu(launch.topology)
    _check(launch, topology)
    words = ["python", "-m", "transformer_jax", *launch.run]
    values: dict[str, Any] = {
        "command": shlex.join(words),
        "name": launch.name,
        "out": launch.out,
        "hosts": topology.hosts,
        "chips": topology.chips,
        "shape": topology.shape,
        "slices": launch.slices,
        "image": json.dumps(launch.image),
        "zone": launch.zone,
        "time": launch.time,
        "grace": launch.grace,
        "grace_variable": GRACE,
        "given": min(launch.grace, SPOT_SECONDS) if launch.spot and launch.on != "slurm" else launch.grace,
        "restarts": RESTARTS,
        "preempted": PREEMPTED,
        "lost": LOST,
        "aborted": ABORTED,
        "spot": "",
    }
    if launch.on in ("gke", "kubeflow"):
        values["words"] = json.dumps(words)  # flow style of YAML
        values["accelerator"] = topology.generation.gke
        if launch.spot:
            indent = 16 if launch.on == "gke" else 20
            values["spot"] = f'\n{" " * indent}cloud.google.com/gke-spot: "true"'
    elif launch.on == "tpu-vm":
        values["quoted"] = shlex.quote(shlex.join(words))  # through two shells
        values |= {"accelerator": topology.accelerator, "runtime": topology.generation.runtime}
        values["spot"] = " --spot" if launch.spot else ""
    else:
        values["words"] = shlex.join(words)
    text = (Path(__file__).parent / "templates" / PLACES[launch.on]).read_text()
    return re.sub(r"\{\{(\w+)\}\}", lambda found: str(values[found[1]]), text)


def _check(launch: Launch, topology: Topology) -> None:
    if not re.fullmatch(r"[a-z]([a-z0-9-]{0,38}[a-z0-9])?", launch.name):
        raise BadInput(
            f"--name {launch.name}: a name has at most 40 small letters, digits and dashes, first a letter."
        )
    if launch.on in ("gke", "kubeflow") and not launch.image:
        raise BadInput(f"--on {launch.on} needs --image: a container image with this package in it.")
    if launch.on == "tpu-vm" and not launch.zone:
        raise BadInput("--on tpu-vm needs --zone: the zone of Google Cloud, such as europe-west4-b.")
    if launch.on != "slurm" and not launch.out.startswith("gs://"):
        raise BadInput(
            f"--out {launch.out}: the disk of a preempted slice is gone; give a directory in an object "
            f"store, such as gs://BUCKET/{launch.name}."
        )
    if launch.grace < 1:
        raise BadInput(f"--grace {launch.grace}: a job needs at least a second to save.")
    if launch.slices < 1 or (launch.slices > 1 and launch.on != "gke"):
        raise BadInput(f"--slices {launch.slices}: several slices go with --on gke; elsewhere it is 1.")
