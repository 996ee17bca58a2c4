"""Train N steps = train k, die, train the rest: in every bit of the state, the metrics and the data order."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from tests.train.toy import arrays, toy_model
from tests.train.worker import long_run
from transformer_jax.checkpoint import restore_latest
from transformer_jax.train import loop
from transformer_jax.train.metrics import read_metrics
from transformer_jax.train.progress import Silent

ROOT = Path(__file__).parents[2]
CLOCK = {"seconds", "steps_per_s", "tokens_per_s", "data_wait", "save_seconds"}
SAVE_EVERY, STEPS = 60, 900


@pytest.fixture(autouse=True)
def toy(monkeypatch):
    monkeypatch.setattr(loop, "build_model", toy_model)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return tmp_path_factory.mktemp("data")


def finish(out, data, save_every=SAVE_EVERY, steps=STEPS):
    return loop.train(long_run(save_every, steps), out, data=data, progress=Silent(), label="worker")


@pytest.fixture(scope="module")
def uninterrupted(data, tmp_path_factory):
    out = tmp_path_factory.mktemp("whole") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "build_model", toy_model)
        finish(out, data)
    return out


def start(out, data):
    command = [
        sys.executable,
        str(ROOT / "tests/train/worker.py"),
        str(out),
        str(data),
        str(SAVE_EVERY),
        str(STEPS),
    ]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def until(worker, condition, seconds=120):
    """Waits until the worker's files fulfil a condition."""
    for _ in range(seconds * 200):
        if condition():
            return
        assert worker.poll() is None, worker.communicate()[0]
        time.sleep(0.005)
    worker.kill()
    raise AssertionError(f"nothing happened in {seconds} s: {worker.communicate()[0]}")


def same(out, reference):
    """The last checkpoint, the metrics and the result, clocks aside."""
    states = []
    for where in (out, reference):
        training = loop.Training(
            long_run(SAVE_EVERY, STEPS),
            where,
            data=where / "data",
            watch=Silent(),
            record=json.loads((where / "config.json").read_text()),
        )
        found = restore_latest(where / "checkpoints", training.state.parts())
        training.close()
        found.record.pop("clock")
        states.append(found)
    assert states[0].step == states[1].step == STEPS
    assert states[0].record == states[1].record
    for a, b in zip(arrays(states[0].parts), arrays(states[1].parts), strict=True):
        np.testing.assert_array_equal(a, b)
    lines, results = [], []
    for where in (out, reference):
        lines.append([{k: v for k, v in line.items() if k not in CLOCK} for line in read_metrics(where)])
        result = json.loads((where / "result.json").read_text())
        results.append({k: v for k, v in result.items() if k not in CLOCK})
    assert lines[0] == lines[1] and len(lines[0]) > 100
    assert results[0] == results[1]


def test_killed_at_any_moment_it_continues_bit_by_bit(uninterrupted, data, tmp_path):
    out = tmp_path / "run"
    rng = np.random.default_rng()
    reached = []
    for _ in range(2):
        worker = start(out, data)
        goal = max(reached, default=0) + 3 * SAVE_EVERY
        until(worker, lambda goal=goal: any(line["step"] > goal for line in read_metrics(out)))
        time.sleep(rng.random() * 0.05)
        worker.send_signal(signal.SIGKILL)
        worker.wait()
        reached.append(max(line["step"] for line in read_metrics(out)))
    assert not (out / "result.json").exists() and SAVE_EVERY < reached[0] < reached[1] < STEPS
    with (out / "metrics.jsonl").open("a") as file:
        file.write('{"step": 900, "split": "tra')  # as a kill tears it
    finish(out, data)
    same(out, uninterrupted)


def test_sigterm_saves_and_says_so(uninterrupted, data, tmp_path):
    out = tmp_path / "run"
    worker = start(out, data)
    until(worker, lambda: len(read_metrics(out)) > 20)
    worker.send_signal(signal.SIGTERM)
    said = worker.communicate(timeout=60)[0]
    assert worker.returncode == 143
    steps = sorted(int(path.name) for path in (out / "checkpoints").iterdir())
    assert f"Stopped by SIGTERM at step {steps[-1]}" in said and "Traceback" not in said
    assert steps[-1] >= max(line["step"] for line in read_metrics(out))
    finish(out, data)
    same(out, uninterrupted)
