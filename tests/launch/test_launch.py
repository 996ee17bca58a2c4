"""What `launch` prints fits the clusters: their published schemas, their shells, our own command line."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import jsonschema
import pytest
import yaml

from transformer_jax import arguments, cli
from transformer_jax.errors import BadInput
from transformer_jax.launch import launch
from transformer_jax.launch.topology import GENERATIONS, nodes, tpu
from transformer_jax.parallel.group import ABORTED, GRACE, LOST, PREEMPTED

SCHEMAS = json.loads(Path(__file__).with_name("schemas.json").read_text())
WHERE = {
    "gke": ["--topology", "v5e:4x4", "--slices", "2", "--image", "example.com/lab:1", "--spot"],
    "kubeflow": ["--topology", "v5p:2x2x2", "--image", "example.com/lab:1", "--spot"],
    "slurm": ["--topology", "4x8"],
    "tpu-vm": ["--topology", "v6e:4x4", "--zone", "europe-west4-b", "--spot"],
}
AWKWARD = ["--train.steps", "100", "--train.mesh.fsdp", "2", "--variants", "full,linear"]


def launched(capsys, place, *more):
    out = "/shared/it's here" if place == "slurm" else "gs://bucket/it's here"
    words = ["launch", "quickstart", "--on", place, "--out", out, *WHERE[place], *more]
    code = cli.main(words)
    said = capsys.readouterr()
    assert code == 0, said.err
    return said.out, ["run", "quickstart", "--scale", "smoke", "--out", out, "--data", "data_cache", *more]


def command_in(place, text):
    """The words of the command, as the cluster would split them."""
    if place == "gke":
        return container(yaml.safe_load(text))["command"]
    if place == "kubeflow":
        return list(yaml.safe_load_all(text))[1]["spec"]["trainer"]["command"]
    [line] = [line for line in text.splitlines() if "-m transformer_jax run" in line and line[0] != "#"]
    words = shlex.split(line, comments=True)
    if place == "slurm":
        assert words[0] == "srun"
        return words[2:]
    # One word for ssh, which the shell of the other side splits once more.
    [remote] = [word for word in words if word.startswith("--command=")]
    words = shlex.split(remote.removeprefix("--command=").replace(";", " ; "))
    return words[words.index("python") : words.index(";")]


def container(jobset):
    [job] = jobset["spec"]["replicatedJobs"]
    [one] = job["template"]["spec"]["template"]["spec"]["containers"]
    return one


@pytest.mark.parametrize("place", WHERE)
def test_the_command_inside_is_one_that_the_command_line_takes(place, capsys, monkeypatch):
    monkeypatch.setattr(arguments, "place", Path)  # whether gcsfs is here is not the question
    text, run = launched(capsys, place, *AWKWARD)
    words = command_in(place, text)
    assert words == ["python", "-m", "transformer_jax", *run]
    options, rest = cli.parser(cli.VERBS).parse_known_args(words[3:])
    assert options.function is cli.run_experiment and options.out.name == "it's here"
    assert cli.settings(rest) == {"train.steps": "100", "train.mesh.fsdp": "2", "variants": "full,linear"}


@pytest.mark.parametrize("place", ["gke", "kubeflow"])
def test_manifests_fit_the_published_schemas(place, capsys):
    documents = list(yaml.safe_load_all(launched(capsys, place, *AWKWARD)[0]))
    assert [d["kind"] for d in documents] == (
        ["JobSet"] if place == "gke" else ["ClusterTrainingRuntime", "TrainJob"]
    )
    for document in documents:
        published = SCHEMAS[document["kind"]]
        assert document["apiVersion"].endswith(published["version"])
        jsonschema.validate(document, published["schema"])


def test_the_schemas_can_say_no(capsys):
    document = yaml.safe_load(launched(capsys, "gke")[0])
    schema = SCHEMAS["JobSet"]["schema"]
    for break_it in (
        lambda d: d["spec"].update(replicas=2),
        lambda d: container(d).pop("name"),
        lambda d: d["spec"]["failurePolicy"]["rules"][0].update(action="Stop"),
        lambda d: d["spec"]["replicatedJobs"][0].update(replicas="two"),
    ):
        broken = json.loads(json.dumps(document))
        break_it(broken)
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(broken, schema)


def test_failures_end_a_job_and_preemptions_do_not(capsys):
    """Codes of the policy fail the job, and that reason fails the set; any other starts it again."""
    for place in ("gke", "kubeflow"):
        document = next(yaml.safe_load_all(launched(capsys, place)[0]))
        spec = document["spec"] if place == "gke" else document["spec"]["template"]["spec"]
        [rule] = spec["failurePolicy"]["rules"]
        assert rule["action"] == "FailJobSet" and rule["onJobFailureReasons"] == ["PodFailurePolicy"]
        [job] = spec["replicatedJobs"]
        [codes] = job["template"]["spec"]["podFailurePolicy"]["rules"]
        assert codes["action"] == "FailJob" and codes["onExitCodes"]["values"] == [1, 2]
        pod = job["template"]["spec"]["template"]["spec"]
        assert codes["onExitCodes"]["containerName"] == pod["containers"][0]["name"]
        assert not {PREEMPTED, LOST, 137} & set(codes["onExitCodes"]["values"])
        assert spec["failurePolicy"]["maxRestarts"] > 0 and job["template"]["spec"]["backoffLimit"] == 0
        assert pod["terminationGracePeriodSeconds"] == launch.GRACE_SECONDS


@pytest.mark.parametrize("spot", [True, False])
@pytest.mark.parametrize("place", ["gke", "kubeflow", "slurm", "tpu-vm"])
def test_a_run_is_told_the_grace_that_its_cluster_gives(place, spot, capsys):
    """A spot machine of Google Cloud gives 30 seconds, whatever is asked."""
    where = [word for word in WHERE[place] if word != "--spot"] + ["--spot"] * spot
    out = "/shared/out" if place == "slurm" else "gs://bucket/out"
    assert cli.main(["launch", "quickstart", "--on", place, "--out", out, *where, "--grace", "600"]) == 0
    text = capsys.readouterr().out
    if place == "slurm":
        told = re.search(rf"^export {GRACE}=(\d+)$", text, re.MULTILINE)[1]
        assert "--signal=TERM@600" in text
    elif place == "tpu-vm":
        told = re.search(rf"{GRACE}=(\d+) ", text)[1]
    else:
        documents = list(yaml.safe_load_all(text))
        env = (
            documents[-1]["spec"]["trainer"]["env"] if place == "kubeflow" else container(documents[0])["env"]
        )
        told = {entry["name"]: entry["value"] for entry in env}[GRACE]
        assert "terminationGracePeriodSeconds: 600" in text
    assert told == ("30" if spot and place != "slurm" else "600")


def test_no_time_to_save_is_refused(capsys):
    words = ["--on", "slurm", "--topology", "4x8", "--out", "/shared/out", "--grace", "0"]
    assert cli.main(["launch", "quickstart", *words]) == 2
    assert capsys.readouterr().err.count("--grace 0") == 1


@pytest.mark.parametrize("place", ["slurm", "tpu-vm"])
def test_scripts_are_scripts(place, capsys, tmp_path):
    text = launched(capsys, place, *AWKWARD)[0]
    assert subprocess.run(["bash", "-n"], input=text, text=True).returncode == 0
    assert "{{" not in text


@pytest.mark.parametrize(
    "code, again",
    [(0, False), (1, False), (2, False), (ABORTED, True), (137, True), (PREEMPTED, True), (LOST, True)],
)
def test_a_slurm_job_starts_again_where_that_helps(code, again, capsys, tmp_path):
    text = launched(capsys, "slurm")[0]
    for name, body in (("srun", f"exit {code}"), ("scontrol", 'echo "scontrol $*"')):
        (tmp_path / name).write_text(f"#!/bin/sh\n{body}\n")
        (tmp_path / name).chmod(0o755)
    environment = {"PATH": f"{tmp_path}:{Path(shutil.which('bash')).parent}", "SLURM_JOB_ID": "7"}
    done = subprocess.run(["bash"], input=text, env=environment, capture_output=True, text=True)
    assert done.returncode == code and ("scontrol requeue 7" in done.stdout) == again
    assert f"--signal=TERM@{launch.GRACE_SECONDS}" in text and "--requeue" in text


@pytest.mark.parametrize(
    "answers, made",
    [
        (["fails", "ACTIVE", "ACTIVE"], []),
        (["ACTIVE", "fails", "ACTIVE"], []),
        (["NOT_FOUND", "PROVISIONING", "ACTIVE"], ["delete", "create"]),
        (["SUSPENDED", "ACTIVE"], ["delete", "create"]),
    ],
    ids=" ".join,
)
def test_a_slice_is_made_anew_only_where_it_is_known_to_be_gone(answers, made, capsys, tmp_path):
    """`answers`: what Google Cloud says of it, one question after the other; that it fails says nothing."""
    text = launched(capsys, "tpu-vm")[0]
    (tmp_path / "answers").write_text("".join(f"{answer}\n" for answer in answers))
    gcloud = """#!/bin/bash
    echo "$*" >> asked
    case "$*" in
      *describe*)
        answer=$(head -n 1 answers); sed -i 1d answers
        case "$answer" in
          fails) echo "ERROR: connection reset" >&2; exit 1 ;;
          NOT_FOUND) echo "ERROR: NOT_FOUND: no such request" >&2; exit 1 ;;
        esac
        echo "$answer" ;;
      *"cat "*) echo 0 ;;
    esac
    """
    for name, body in (("gcloud", gcloud), ("sleep", "#!/bin/sh\n"), ("tar", "#!/bin/sh\n")):
        (tmp_path / name).write_text(body.replace("\n    ", "\n"))
        (tmp_path / name).chmod(0o755)
    text = text.replace('> "/tmp/', '> "')
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    done = subprocess.run(
        ["bash"], input=text, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0 and "Ended with code 0" in done.stdout, done
    asked = (tmp_path / "asked").read_text()
    assert re.findall("queued-resources (delete|create)", asked) == made
    assert not (tmp_path / "answers").read_text()


@pytest.mark.parametrize(
    "text, hosts, chips, accelerator",
    [
        ("v4:2x2x4", 4, 4, "v4-32"),
        ("v5e:1x1", 1, 1, "v5litepod-1"),
        ("v5e:2x4", 1, 8, "v5litepod-8"),
        ("v5e:4x4", 4, 4, "v5litepod-16"),
        ("v5p:2x2x2", 2, 4, "v5p-16"),
        ("v6e:16x16", 64, 4, "v6e-256"),
    ],
)
def test_a_topology_is_hosts_and_chips(text, hosts, chips, accelerator):
    found = tpu(text)
    assert (found.hosts, found.chips, found.accelerator) == (hosts, chips, accelerator)


def test_nodes_are_hosts_and_gpus():
    assert (nodes("4x8").hosts, nodes("4x8").chips) == (4, 8) and set(GENERATIONS) == {
        "v4",
        "v5e",
        "v5p",
        "v6e",
    }


@pytest.mark.parametrize(
    "words, sentence",
    [
        (["--on", "gcp", "--topology", "v5e:4x4", "--out", "gs://b"], "Unknown place 'gcp': choose from gke"),
        (["--on", "gke", "--topology", "v5e:4x4", "--out", "gs://b"], "--on gke needs --image"),
        (["--on", "tpu-vm", "--topology", "v5e:4x4", "--out", "gs://b"], "--on tpu-vm needs --zone"),
        (["--on", "gke", "--topology", "v5e:3x3", "--out", "gs://b"], "has one of the shapes 1x1"),
        (["--on", "gke", "--topology", "v5p:4x4", "--out", "gs://b"], "three dimensions"),
        (["--on", "gke", "--topology", "v7:4x4", "--out", "gs://b"], "Unknown TPU generation 'v7'"),
        (["--on", "slurm", "--topology", "v5e:4x4", "--out", "x"], "on SLURM write NODESxGPUS"),
        (["--on", "slurm", "--topology", "1x1", "--out", "x", "--slices", "2"], "--slices 2"),
        (["--on", "slurm", "--topology", "1x1", "--out", "x", "--name", "No"], "--name No"),
        (["--on", "slurm", "--topology", "1x1", "--out", "x", "--train.stepz", "2"], "did you mean"),
        (
            ["--on", "gke", "--topology", "v5e:4x4", "--image", "i", "--out", "runs/x"],
            "the disk of a preempted slice is gone",
        ),
    ],
)
def test_what_cannot_be_launched_is_one_sentence(words, sentence, capsys):
    assert cli.main(["launch", "quickstart", *words]) == 2
    said = capsys.readouterr().err
    assert sentence in said and said.count("\n") == 1


def test_a_launch_says_what_it_lacks():
    with pytest.raises(BadInput, match="required: --on"):
        cli.parser(cli.VERBS).parse_args(["launch", "quickstart"])
