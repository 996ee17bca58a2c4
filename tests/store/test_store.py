"""A run whose directories are in an object store: killed, and continued bit by bit."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.parallel.several import free_ports
from tests.store.stand_in import stand_in
from transformer_jax import arguments, cli, store
from transformer_jax.errors import BadInput

ROOT = Path(__file__).parents[2]
CLOCK = {"seconds", "steps_per_s", "tokens_per_s", "data_wait", "save_seconds"}
SAVE_EVERY, STEPS = 30, 120


def test_what_gs_needs_is_said(monkeypatch, capsys):
    monkeypatch.setattr(store.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(BadInput, match="gs://b/x needs gcsfs: pip install gcsfs"):
        store.place("gs://b/x")
    assert cli.main(["run", "quickstart", "--out", "gs://b/x"]) == 2
    assert "gs://b/x needs gcsfs" in capsys.readouterr().err


def test_a_place_on_a_disk_stays_as_it_is(tmp_path):
    assert store.place("runs/x") == Path("runs/x") and not store.remote(Path("runs/x"))
    store.write_text(tmp_path / "a", "b")
    assert (tmp_path / "a").read_text() == "b" and [p.name for p in tmp_path.iterdir()] == ["a"]


class Silent:
    """A directory of a store that does not answer."""

    def __fspath__(self):
        return "gs://bucket/run"

    __str__ = __fspath__

    def exists(self):
        raise ConnectionError("no route\nto host")


def test_a_store_that_does_not_answer_is_one_sentence(monkeypatch, capsys):
    store.reach(Path("runs/x"))
    with pytest.raises(
        BadInput, match=r"Cannot reach gs://bucket/run \(ConnectionError: no route to host\): "
    ):
        store.reach(Path("runs/x"), Silent())
    monkeypatch.setattr(arguments, "place", lambda text: Silent())
    for words in (["run", "quickstart", "--out"], ["report"], ["generate"]):
        assert cli.main([*words, "gs://bucket/run"]) == 2
        said = capsys.readouterr().err
        assert said.startswith("Error: Cannot reach gs://bucket/run ") and said.count("\n") == 1, said


@pytest.mark.parametrize("bucket", ["absent", "forbidden"])
def test_a_bucket_that_cannot_be_written_is_one_sentence(bucket, monkeypatch):
    pytest.importorskip("gcsfs")
    with stand_in() as (address, _):
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", address)
        monkeypatch.setenv("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")
        with pytest.raises(
            BadInput, match=f"Cannot write gs://{bucket}/run/a .*check that its bucket is there"
        ):
            store.write_text(store.place(f"gs://{bucket}/run") / "a", "b")


@pytest.mark.slow
def test_a_store_that_one_process_cannot_reach_is_told_by_that_one_and_ends_all(tmp_path):
    """Through the command line; gcsfs itself tries for half a minute."""
    pytest.importorskip("gcsfs")
    with stand_in() as (address, objects), socket.create_server(("127.0.0.1", 0)) as closed:
        nowhere = f"http://127.0.0.1:{closed.getsockname()[1]}"
        closed.close()
        port, processes = free_ports(), []
        for number, host in enumerate((address, nowhere)):
            here = ["--coordinator", f"127.0.0.1:{port}", "--processes", "2", "--process", str(number)]
            places = ["--out", "gs://bucket/run", "--data", str(tmp_path / "data")]
            settings = {"STORAGE_EMULATOR_HOST": host, "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false"}
            processes.append(
                subprocess.Popen(
                    [sys.executable, "-m", "transformer_jax", "run", "quickstart", *here, *places],
                    env={**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu", **settings},
                    stderr=subprocess.PIPE,
                    text=True,
                )
            )
        said = [process.communicate(timeout=240)[1] for process in processes]
    assert [process.returncode for process in processes] == [2, 2], said
    for text in said:
        assert "Error: Process 1 on " in text and "Cannot reach gs://bucket/run (Client" in text, text
        assert "Traceback" not in text, text
    assert not objects


def worker(out, data, **environment):
    return subprocess.Popen(
        [sys.executable, str(ROOT / "tests/train/worker.py"), out, data, str(SAVE_EVERY), str(STEPS)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path]), **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


@pytest.mark.slow
def test_killed_in_a_store_it_continues_bit_by_bit(tmp_path):
    pytest.importorskip("gcsfs")
    with stand_in() as (address, objects):
        settings = {
            "STORAGE_EMULATOR_HOST": address,
            "TENSORSTORE_GCS_HTTP_URL": address,
            "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",
            "TMPDIR": str(tmp_path),  # where copies of the data lie
        }
        first = worker("gs://bucket/run", "gs://bucket/data", **settings)
        deadline = time.monotonic() + 240
        while f"run/checkpoints/{SAVE_EVERY}/commit_success.txt" not in objects:
            assert first.poll() is None and time.monotonic() < deadline, first.communicate()[0]
            time.sleep(0.01)
        first.send_signal(signal.SIGKILL)
        first.communicate()
        (other := tmp_path / "another machine").mkdir()
        assert "run/result.json" not in objects
        again = worker("gs://bucket/run", "gs://bucket/data", **{**settings, "TMPDIR": str(other)})
        said = again.communicate(timeout=240)[0]
        assert again.returncode == 0 and "Continuing from step" in said, said
        assert any(name.startswith("data/copy/validation-") for name in objects)
        plain = worker(str(tmp_path / "run"), str(tmp_path / "data"))
        assert plain.wait(240) == 0
        lines, results = [], []
        here = tmp_path / "run"
        for read in (lambda name: objects[f"run/{name}"][0], lambda name: (here / name).read_bytes()):
            lines.append([json.loads(line) for line in read("metrics.jsonl").splitlines()])
            results.append(json.loads(read("result.json")))
        for found in (*lines, results):
            for line in found:
                for name in CLOCK & line.keys():
                    del line[name]
        assert lines[0] == lines[1] and len(lines[0]) > 10
        assert results[0] == results[1]
