"""Every environment that users launch from, as a matrix: what a process reads out of it, or why it cannot."""

from __future__ import annotations

import functools

import pytest

from tests.parallel.several import free_ports
from transformer_jax import cli
from transformer_jax.errors import BadInput
from transformer_jax.parallel import group
from transformer_jax.parallel.processes import Location, locate, tpu_vm

GKE = {"TPU_WORKER_HOSTNAMES": "job-0-0.job,job-0-1.job", "TPU_WORKER_ID": "1"}
SLICES = {
    **GKE,
    "MEGASCALE_NUM_SLICES": "2",
    "MEGASCALE_SLICE_ID": "1",
    "MEGASCALE_COORDINATOR_ADDRESS": "job-slice-0-0.job:8080",
}
KUBEFLOW = {
    "JAX_COORDINATOR_ADDRESS": "run-node-0-0.run:29500",
    "JAX_NUM_PROCESSES": "4",
    "JAX_PROCESS_ID": "3",
}
SLURM = {
    "SLURM_JOB_ID": "4096",
    "SLURM_STEP_NODELIST": "node[007-010],other2",
    "SLURM_STEP_NUM_TASKS": "8",
    "SLURM_STEP_TASKS_PER_NODE": "2(x4)",
    "SLURM_PROCID": "5",
    "SLURM_LOCALID": "1",
}
OMPI = {
    "OMPI_MCA_orte_hnp_uri": "1531576320.0;tcp://10.96.0.1,10.148.0.1:34911",
    "OMPI_COMM_WORLD_SIZE": "4",
    "OMPI_COMM_WORLD_RANK": "2",
    "OMPI_COMM_WORLD_LOCAL_SIZE": "1",
    "OMPI_COMM_WORLD_LOCAL_RANK": "0",
}
ORTE_PORT = 61440 + 2 * (1531576320 // 4096 % 2047)


def at(source, process, processes, coordinator, device=None):
    return Location(
        source=source, process=process, processes=processes, coordinator=coordinator, device=device
    )


FOUND = {
    "single": ({}, Location(source="single")),
    "GKE TPU, one slice": (GKE, at("TPU", 1, 2, "job-0-0.job:8482")),
    "GKE TPU, two slices": (SLICES, at("TPU", 3, 4, "job-slice-0-0.job:8482")),
    "GKE TPU, one host": (
        {"TPU_WORKER_HOSTNAMES": "localhost", "TPU_WORKER_ID": "0"},
        at("TPU", 0, 1, "localhost:8482"),
    ),
    "Cloud TPU VM": (
        tpu_vm("10.0.0.4,10.0.0.5,10.0.0.6", "2", "ACCELERATOR_TYPE: 'v5litepod-16'\n"),
        at("TPU", 2, 3, "10.0.0.4:8482"),
    ),
    "Cloud TPU VM, older metadata": (
        tpu_vm("a:0:10.0.0.4,b:1:10.0.0.5", "0", None),
        at("TPU", 0, 2, "10.0.0.4:8482"),
    ),
    "Cloud TPU VM, two slices": (
        tpu_vm(
            "10.0.1.1,10.0.1.2",
            "1",
            "MEGASCALE_NUM_SLICES: '2'\nMEGASCALE_SLICE_ID: '1'\n"
            "MEGASCALE_COORDINATOR_ADDRESS: '10.0.0.1:8080'\n",
        ),
        at("TPU", 3, 4, "10.0.0.1:8482"),
    ),
    "Kubeflow Trainer": (KUBEFLOW, at("JAX_*", 3, 4, "run-node-0-0.run:29500")),
    "Kubeflow Trainer on TPU: its process number repeats in each slice": (
        {**SLICES, **KUBEFLOW, "JAX_PROCESS_ID": "1"},
        at("TPU", 3, 4, "job-slice-0-0.job:8482"),
    ),
    "SLURM, two tasks per node": (SLURM, at("SLURM", 5, 8, f"node007:{61440 + 2 * (4096 % 2047)}", 1)),
    "SLURM, one task per node": (
        {**SLURM, "SLURM_STEP_TASKS_PER_NODE": "1(x8)", "SLURM_STEP_NODELIST": "a,b[1-7]"},
        at("SLURM", 5, 8, f"a:{61440 + 2 * (4096 % 2047)}"),
    ),
    "SLURM with a coordinator of the user's": (
        {**SLURM, "JAX_COORDINATOR_ADDRESS": "head:99"},
        at("SLURM", 5, 8, "head:99", 1),
    ),
    "a shell in a SLURM job, without srun": (
        {"SLURM_JOB_ID": "7", "SLURM_NTASKS": "8", "SLURM_PROCID": "0"},
        Location(source="single"),
    ),
    "Open MPI 4": (OMPI, at("Open MPI", 2, 4, f"10.96.0.1:{ORTE_PORT}")),
    "Open MPI 4 over IPv6": (
        {**OMPI, "OMPI_MCA_orte_hnp_uri": "1531576320.0;tcp6://[fe80::b9b,2620::2]:43370"},
        at("Open MPI", 2, 4, f"[fe80::b9b]:{ORTE_PORT}"),
    ),
    "Open MPI 5 with a coordinator": (
        {k: v for k, v in OMPI.items() if "orte" not in k} | {"JAX_COORDINATOR_ADDRESS": "head:99"},
        at("Open MPI", 2, 4, "head:99"),
    ),
    "TPU before SLURM": ({**SLURM, **GKE}, at("TPU", 1, 2, "job-0-0.job:8482")),
    "JAX_* before SLURM": ({**SLURM, **KUBEFLOW}, at("JAX_*", 3, 4, "run-node-0-0.run:29500")),
}

CONTRADICTORY = {
    "half of JAX_*": (
        {"JAX_NUM_PROCESSES": "4", "JAX_PROCESS_ID": "0"},
        "JAX_COORDINATOR_ADDRESS is not set",
    ),
    "an address alone": ({"JAX_COORDINATOR_ADDRESS": "a:1"}, "JAX_NUM_PROCESSES is not set"),
    "a process too many": ({**KUBEFLOW, "JAX_PROCESS_ID": "4"}, "process 4 of 4 does not exist"),
    "no number": ({**KUBEFLOW, "JAX_PROCESS_ID": "two"}, "JAX_PROCESS_ID=two is not a whole number"),
    "no port": ({**KUBEFLOW, "JAX_COORDINATOR_ADDRESS": "run-node-0-0"}, "is not HOST:PORT"),
    "fewer processes than TPU hosts": ({**GKE, **KUBEFLOW}, "JAX_NUM_PROCESSES=4 but the TPU slice has 2"),
    "a worker that is no host": ({**GKE, "TPU_WORKER_ID": "2"}, "TPU_WORKER_ID=2 but TPU_WORKER_HOSTNAMES"),
    "hosts without a worker": (
        {"TPU_WORKER_HOSTNAMES": "a,b"},
        "TPU_WORKER_ID is not set though its companions are",
    ),
    "slices without hosts": ({"MEGASCALE_NUM_SLICES": "2"}, "without TPU_WORKER_HOSTNAMES"),
    "a slice too many": ({**SLICES, "MEGASCALE_SLICE_ID": "2"}, "MEGASCALE_SLICE_ID=2 but"),
    "slices that meet nowhere": (
        {k: v for k, v in SLICES.items() if k != "MEGASCALE_COORDINATOR_ADDRESS"},
        "MEGASCALE_COORDINATOR_ADDRESS is not set",
    ),
    "SLURM without a number": (
        {k: v for k, v in SLURM.items() if k != "SLURM_PROCID"},
        "SLURM_PROCID is not",
    ),
    "Open MPI on hosts that do not say where": (
        {k: v for k, v in OMPI.items() if "orte" not in k},
        "does not say where process 0 is",
    ),
}


@pytest.mark.quick
@pytest.mark.parametrize("case", FOUND)
def test_a_process_finds_its_place(case):
    environment, expected = FOUND[case]
    assert locate(environment) == expected


@pytest.mark.parametrize("case", CONTRADICTORY)
def test_a_contradiction_is_one_sentence(case):
    environment, sentence = CONTRADICTORY[case]
    with pytest.raises(BadInput, match=sentence) as error:
        locate(environment)
    assert "\n" not in str(error.value)


def test_flags_come_first_and_are_whole():
    flags = {"coordinator": "here:1", "processes": 2, "process": 1}
    assert locate({**GKE, **KUBEFLOW, **SLURM}, **flags) == at("flags", 1, 2, "here:1")
    with pytest.raises(BadInput, match="--coordinator is missing: give all of"):
        locate(GKE, processes=2, process=1)
    with pytest.raises(BadInput, match="flags: process 2 of 2 does not exist"):
        locate({}, **{**flags, "process": 2})


HERE = ("--coordinator", f"127.0.0.1:{free_ports()}", "--processes", "2", "--process")


@pytest.mark.parametrize(
    "words, environment, sentence",
    [
        (("--processes", "2"), {}, "--coordinator and --process are missing"),
        ((), {"JAX_NUM_PROCESSES": "4"}, "JAX_COORDINATOR_ADDRESS is not set though its companions are"),
        ((), {**GKE, **KUBEFLOW}, "JAX_NUM_PROCESSES=4 but the TPU slice has 2 hosts"),
        ((*HERE, "0"), {}, "After 1 s process 1 of 2 had not come: see its log"),
        ((*HERE, "1"), {}, "Process 0 did not answer at 127.0.0.1:"),
    ],
    ids=[
        "half of the flags",
        "half of JAX_*",
        "a contradiction",
        "process 1 is missing",
        "process 0 is missing",
    ],
)
def test_the_command_line_says_it_and_exits_with_2(words, environment, sentence, capsys, monkeypatch):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(group, "joined", functools.partial(group.joined, arrive=1.0))
    assert cli.main(["run", "quickstart", *words]) == 2
    said = capsys.readouterr().err
    assert sentence in said and said.count("\n") == 1
