"""Which process this is, of how many, and where they meet: read from the environment in one order.

1. Flags: `--coordinator HOST:PORT --processes N --process I`.
2. TPU: TPU_WORKER_HOSTNAMES (or TPU_PROCESS_ADDRESSES) and TPU_WORKER_ID, with MEGASCALE_* where there are
   several slices; GKE sets them, on a Cloud TPU VM the metadata server has them.
3. JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES, JAX_PROCESS_ID, as Kubeflow Trainer sets them. JAX itself reads
   only the first. On a TPU they stand behind the TPU's own, because JAX_PROCESS_ID repeats in each slice.
4. SLURM (a step of srun), Open MPI.
5. One process.

The first that is there decides; `locate` is a pure function, so that every environment can be tested.
"""

from __future__ import annotations

import glob
import os
import re
import urllib.request
import zlib
from collections.abc import Mapping
from dataclasses import dataclass

from transformer_jax.errors import BadInput

PORT = 8482  # of the coordinator on a TPU, as in JAX
METADATA = "http://metadata.google.internal/computeMetadata/v1/instance/attributes/"


@dataclass(frozen=True, kw_only=True)
class Location:
    """One process among several.

    Attributes:
      source: what said so: "flags", "TPU", "JAX_*", "SLURM", "Open MPI" or "single".
      process: of this one, from 0. processes: how many there are.
      coordinator: HOST:PORT of process 0; None where there is one process.
      device: the one accelerator of its host that this process has; None: all of them.
    """

    source: str
    process: int = 0
    processes: int = 1
    coordinator: str | None = None
    device: int | None = None

    def __post_init__(self):
        if self.processes < 1 or not 0 <= self.process < self.processes:
            raise BadInput(
                f"{self.source}: process {self.process} of {self.processes} does not exist; processes count "
                f"from 0 to one below their number."
            )
        if self.processes > 1 and not re.fullmatch(r"(\[[^]]+\]|[^:\s]+):\d+", self.coordinator or ""):
            raise BadInput(
                f"{self.source}: the coordinator {self.coordinator!r} is not HOST:PORT, such as 10.0.0.1:99."
            )


def locate(
    environment: Mapping[str, str],
    *,
    coordinator: str | None = None,
    processes: int | None = None,
    process: int | None = None,
) -> Location:
    """The place of this process by flags and environment variables.

    Raises BadInput where they contradict each other or say only half.
    """
    flags = {"--coordinator": coordinator, "--processes": processes, "--process": process}
    if any(value is not None for value in flags.values()):
        if missing := [name for name, value in flags.items() if value is None]:
            raise BadInput(
                f"{' and '.join(missing)} {'is' if len(missing) == 1 else 'are'} missing: give all of "
                f"{', '.join(flags)}, or none of them."
            )
        return Location(
            source="flags",
            process=process or 0,
            processes=processes if processes is not None else 1,
            coordinator=coordinator,
        )
    for source in (_tpu, _jax, _slurm, _open_mpi):
        if found := source(environment):
            return found
    return Location(source="single")


def _tpu(environment: Mapping[str, str]) -> Location | None:
    names = environment.get("TPU_PROCESS_ADDRESSES") or environment.get("TPU_WORKER_HOSTNAMES")
    slices = _number(environment, "MEGASCALE_NUM_SLICES", 1)
    if not names:
        if slices > 1:
            raise BadInput(
                f"MEGASCALE_NUM_SLICES={slices} without TPU_WORKER_HOSTNAMES: there is no telling which "
                f"hosts a slice has; set both, as GKE does, or give --coordinator, --processes, --process."
            )
        return None
    hosts = [name.strip() for name in names.split(",")]
    worker = _number(environment, "TPU_WORKER_ID", 0 if len(hosts) == 1 else None)
    if worker >= len(hosts):
        raise BadInput(
            f"TPU_WORKER_ID={worker} but TPU_WORKER_HOSTNAMES has {len(hosts)} hosts: the two come from "
            f"different jobs; unset both, or set them together."
        )
    number, meeting = 0, hosts[0]
    if slices > 1:
        number = _number(environment, "MEGASCALE_SLICE_ID", None)
        meeting = _required(environment, "MEGASCALE_COORDINATOR_ADDRESS")
        if number >= slices:
            raise BadInput(
                f"MEGASCALE_SLICE_ID={number} but MEGASCALE_NUM_SLICES={slices}: slices count from 0."
            )
    elif (other := _number(environment, "JAX_NUM_PROCESSES", len(hosts))) != len(hosts):
        raise BadInput(
            f"JAX_NUM_PROCESSES={other} but the TPU slice has {len(hosts)} hosts (TPU_WORKER_HOSTNAMES): "
            f"start one process on each host of the slice."
        )
    return Location(
        source="TPU",
        process=number * len(hosts) + worker,
        processes=slices * len(hosts),
        coordinator=f"{_host(meeting)}:{PORT}",
    )


def _jax(environment: Mapping[str, str]) -> Location | None:
    names = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
    given = [name for name in names if environment.get(name)]
    if not given or (given == [names[0]] and (_in_slurm(environment) or _in_open_mpi(environment))):
        return None  # the address alone serves a launcher that has the rest
    if given == [names[1]] and environment[names[1]] == "1":
        return None
    for name in names:
        _required(environment, name)
    return Location(
        source="JAX_*",
        process=_number(environment, names[2], None),
        processes=_number(environment, names[1], None),
        coordinator=environment[names[0]],
    )


def _in_slurm(environment: Mapping[str, str]) -> bool:
    return bool(environment.get("SLURM_STEP_NODELIST"))  # srun started it, not a shell inside a job


def _slurm(environment: Mapping[str, str]) -> Location | None:
    if not _in_slurm(environment):
        return None
    count = _number(environment, "SLURM_STEP_NUM_TASKS", _number(environment, "SLURM_NTASKS", 1))
    if count == 1:
        return None
    # The first of "node001", "node001,host2", "node[001-015],host2", "node[001,007-015]".
    first = re.sub(r"\[([^],-]+).*", r"\1", environment["SLURM_STEP_NODELIST"]).split(",")[0]
    port = _free_port(_number(environment, "SLURM_JOB_ID", None))
    per_node = re.match(r"\d+", environment.get("SLURM_STEP_TASKS_PER_NODE", "1"))
    return Location(
        source="SLURM",
        process=_number(environment, "SLURM_PROCID", None),
        processes=count,
        coordinator=environment.get("JAX_COORDINATOR_ADDRESS") or f"{first}:{port}",
        device=_number(environment, "SLURM_LOCALID", None) if per_node and int(per_node[0]) > 1 else None,
    )


def _in_open_mpi(environment: Mapping[str, str]) -> bool:
    return bool(environment.get("OMPI_COMM_WORLD_SIZE"))


def _open_mpi(environment: Mapping[str, str]) -> Location | None:
    if not _in_open_mpi(environment) or (count := _number(environment, "OMPI_COMM_WORLD_SIZE", 1)) == 1:
        return None
    here = _number(environment, "OMPI_COMM_WORLD_LOCAL_SIZE", 1)
    uri = environment.get("OMPI_MCA_orte_hnp_uri", "")  # 1531576320.0;tcp://10.96.0.1,10.148.0.1:34911
    address = re.search(r"tcp://([^,:]+)|tcp6://\[([^],]+)", uri)
    if environment.get("JAX_COORDINATOR_ADDRESS"):
        coordinator = environment["JAX_COORDINATOR_ADDRESS"]
    elif address:
        host = address[1] or f"[{address[2]}]"
        coordinator = f"{host}:{_free_port(int(uri.split('.')[0]) // 2**12)}"
    elif here == count:
        job = zlib.crc32(environment.get("PMIX_NAMESPACE", "").encode())
        coordinator = f"127.0.0.1:{_free_port(job)}"
    else:
        raise BadInput(
            "This Open MPI does not say where process 0 is: set JAX_COORDINATOR_ADDRESS=HOST:PORT, or give "
            "--coordinator, --processes, --process."
        )
    return Location(
        source="Open MPI",
        process=_number(environment, "OMPI_COMM_WORLD_RANK", None),
        processes=count,
        coordinator=coordinator,
        device=_number(environment, "OMPI_COMM_WORLD_LOCAL_RANK", None) if here > 1 else None,
    )


def _free_port(job: int) -> int:
    """A port above 61440 that a job's processes agree on, with the next one for the roll call."""
    return 61440 + 2 * (job % 2047)


def _host(address: str) -> str:
    """Without the port that some sources add: 10.0.0.1:8471, [fe80::1]:8471."""
    bracketed = re.match(r"\[[^]]+\]", address)
    return bracketed[0] if bracketed else address.split(":")[0]


def _required(environment: Mapping[str, str], name: str) -> str:
    value = environment.get(name, "").strip()
    if not value:
        raise BadInput(
            f"{name} is not set though its companions are: set all of them, or none and give --coordinator, "
            f"--processes, --process."
        )
    return value


def _number(environment: Mapping[str, str], name: str, default: int | None) -> int:
    text = environment.get(name, "").strip()
    if not text and default is not None:
        return default
    text = _required(environment, name)
    if not text.isdecimal():
        raise BadInput(f"{name}={text} is not a whole number of at least 0.")
    return int(text)


def surroundings() -> dict[str, str]:
    """The environment variables, and on a Cloud TPU VM what its metadata server says in their place."""
    found = dict(os.environ)
    chips = glob.glob("/dev/accel[0-9]*") or glob.glob("/dev/vfio/[0-9]*")
    if "TPU_WORKER_HOSTNAMES" in found or "TPU_SKIP_MDS_QUERY" in found or not chips:
        return found
    hosts, worker, more = (
        _metadata(name) for name in ("worker-network-endpoints", "agent-worker-number", "tpu-env")
    )
    return {**found, **tpu_vm(hosts, worker, more)} if hosts and worker else found


def tpu_vm(hosts: str, worker: str, more: str | None) -> dict[str, str]:
    """The variables that GKE would set, from a TPU VM's metadata.

    Args:
      hosts: addresses, or name:id:address triples, with commas. worker: this one's place among them.
      more: lines such as MEGASCALE_NUM_SLICES: '2'.
    """
    addresses = [entry.split(":")[2] if entry.count(":") == 2 else entry for entry in hosts.split(",")]
    slices = dict(re.findall(r"^\s*(MEGASCALE_\w+)\s*:\s*'?([^'\n]*)'?\s*$", more or "", re.MULTILINE))
    return {"TPU_WORKER_HOSTNAMES": ",".join(addresses), "TPU_WORKER_ID": worker.strip(), **slices}


def _metadata(name: str) -> str | None:
    try:
        request = urllib.request.Request(METADATA + name, headers={"Metadata-Flavor": "Google"})
        return urllib.request.urlopen(request, timeout=5).read().decode()
    except OSError:
        return None
