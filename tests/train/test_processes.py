"""Training in several processes: the losses of one, from whatever number of processes it goes on."""

from __future__ import annotations

import json
import signal
import time

import numpy as np
import pytest

from tests.parallel.several import Several
from tests.train.several_worker import LOST
from tests.train.toy import toy_model
from tests.train.worker import long_run
from transformer_jax.parallel import group
from transformer_jax.train import loop
from transformer_jax.train.metrics import read_metrics
from transformer_jax.train.progress import Silent

WORKER, SAVE_EVERY = "tests/train/several_worker.py", 30


@pytest.fixture(autouse=True)
def toy(monkeypatch):
    monkeypatch.setattr(loop, "build_model", toy_model)


def several(processes, out, data, steps, folder):
    return Several(WORKER, processes, out, data, SAVE_EVERY, steps, folder=folder)


def finish(out, data, steps):
    """Trains, or goes on, in this process alone."""
    return loop.train(long_run(SAVE_EVERY, steps), out, data=data, progress=Silent())


def assert_trained_alike(out, alone):
    """Each line of the record and the result, to the rounding of float32 sums in another order."""
    lines, expected = read_metrics(out), read_metrics(alone)
    assert [(a["step"], a["split"]) for a in lines] == [(b["step"], b["split"]) for b in expected]
    for a, b in zip(lines, expected, strict=True):
        np.testing.assert_allclose(a["loss"], b["loss"], rtol=2e-6, err_msg=f"step {a['step']} {a['split']}")
    found, result = (json.loads((where / "result.json").read_text()) for where in (out, alone))
    assert found["step"] == result["step"] and found["metrics"].keys() == result["metrics"].keys()


def test_two_processes_train_as_one_stop_together_and_go_on_as_one(tmp_path):
    out, data, steps = tmp_path / "two", tmp_path / "data", 900
    with several(2, out, data, steps, tmp_path / "log") as processes:
        processes.until("step 14/")
        processes.send(signal.SIGTERM, 1)
        ended = processes.ended()
    assert [one.code for one in ended] == [group.PREEMPTED] * 2, ended[0].error
    assert "Stopped by SIGTERM at step" in ended[0].out and "Traceback" not in ended[0].error
    assert not [line for line in ended[1].out.splitlines() if "step" in line]  # the first one speaks
    assert 14 <= max(int(path.name) for path in (out / "checkpoints").iterdir()) < steps
    finish(out, data, steps)
    finish(tmp_path / "alone", data, steps)
    assert_trained_alike(out, tmp_path / "alone")


@pytest.mark.slow
@pytest.mark.parametrize("processes", [2, 4])
def test_any_number_of_processes_gives_the_losses_of_one(processes, tmp_path):
    with several(processes, tmp_path / "many", tmp_path / "data", 90, tmp_path / "log") as started:
        ended = started.ended()
    assert [one.code for one in ended] == [0] * processes, ended[-1].error
    finish(tmp_path / "alone", tmp_path / "data", 90)
    assert_trained_alike(tmp_path / "many", tmp_path / "alone")


@pytest.mark.slow
@pytest.mark.parametrize("killed, then", [(1, 4), (0, 1)])
def test_kill_9_of_one_ends_the_other_and_another_number_of_processes_goes_on(killed, then, tmp_path):
    out, data, steps = tmp_path / "out", tmp_path / "data", 240
    with several(2, out, data, steps, tmp_path / "log") as processes:
        processes.until(f"step {7 * (2 * SAVE_EVERY // 7)}/")
        processes.send(signal.SIGKILL, killed)
        began = time.monotonic()
        ended = processes.ended()
        assert time.monotonic() - began < LOST + 6
    assert ended[killed].code == -signal.SIGKILL and ended[1 - killed].code == group.LOST, ended
    assert not (out / "result.json").exists()
    with several(then, out, data, steps, tmp_path / "again") as processes:
        ended = processes.ended()
    assert [one.code for one in ended] == [0] * then, ended[-1].error
    assert "Continuing from step" in ended[0].out
    finish(tmp_path / "alone", data, steps)
    assert_trained_alike(out, tmp_path / "alone")
