from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests import sweep_worker
from transformer_jax.data.tasks.associative_recall import AssociativeRecall
from transformer_jax.data.tasks.imdb import Imdb
from transformer_jax.errors import BadInput
from transformer_jax.experiment import Experiment, Grid, Table, Variant
from transformer_jax.model.config import Transformer
from transformer_jax.report.results import read
from transformer_jax.report.summary import summarize
from transformer_jax.sweep import sweep
from transformer_jax.sweep.cells import plan
from transformer_jax.sweep.progress import Ended, duration, remaining
from transformer_jax.sweep.record import departures
from transformer_jax.train import loop
from transformer_jax.train.config import Train
from transformer_jax.train.metrics import read_metrics
from transformer_jax.train.run import digest, write_json

ROOT = Path(__file__).parents[1]


def make(**changes):
    settings = {
        "title": "t",
        "task": AssociativeRecall(length=16, pairs=2, vocabulary=16, validation_examples=8, test_examples=8),
        "model": Transformer(width=8, mlp="none"),
        "variants": ("full", Variant("linear", steps=3)),
        "train": Train(steps=4, batch=4),
        "tune": Grid(learning_rate=(1e-3, 1e-2), seeds=2),
    }
    return Experiment(**{**settings, **changes})


class Trainer:
    """Stands in for the training loop: writes results, counts calls, and misbehaves when told to."""

    def __init__(self):
        self.calls, self.fate = [], {}

    def __call__(self, run, out, *, data, label="", **_):
        if (out / "result.json").exists():
            return json.loads((out / "result.json").read_text())
        self.calls.append(label)
        fate = self.fate.get(label)
        if fate:
            raise fate
        out.mkdir(parents=True, exist_ok=True)
        metrics = {split: {"accuracy": 0.5, "loss": 1.0} for split in ("validation", "test")}
        result = {"status": "finished", "step": run.train.steps, "metrics": metrics, "seconds": 1.0}
        write_json(out / "result.json", result)
        return result


@pytest.fixture
def trainer(monkeypatch):
    found = Trainer()
    monkeypatch.setattr(loop, "train", found)
    return found


def run(experiment, out, tmp_path, **more):
    return sweep(experiment, out, data=tmp_path / "data", about={"name": "t", "scale": "smoke"}, **more)


@pytest.mark.quick
def test_the_plan_is_the_product_and_begins_with_one_seed_of_everything():
    cells = plan(make())
    assert len(cells) == 8
    assert {c.run.seed for c in cells[:4]} == {0}
    assert {(c.label, c.run.train.learning_rate) for c in cells[:4]} == {
        (label, rate) for label in ("full", "linear") for rate in (1e-3, 1e-2)
    }
    assert len({c.directory for c in cells}) == len({digest(c.run) for c in cells}) == 8
    assert {c.run.train.steps for c in cells if c.label == "linear"} == {3}


@pytest.mark.quick
def test_a_variant_with_a_rate_of_its_own_leaves_the_grid():
    cells = plan(make(variants=("full", Variant("linear", learning_rate=0.5))))
    assert {c.run.train.learning_rate for c in cells if c.label == "linear"} == {0.5}
    assert {c.run.train.learning_rate for c in plan(make(tune=Grid(seeds=1)))} == {1e-3}


@pytest.mark.quick
def test_labels_that_would_share_a_directory_are_refused():
    with pytest.raises(BadInput, match="share the directory"):
        plan(make(variants=(Variant("full", "a b"), Variant("linear", "a,b"))))


def test_finished_cells_are_kept_and_the_rest_run(tmp_path, trainer):
    out, experiment = tmp_path / "out", make()
    trainer.fate = {"linear, rate 0.01, seed 0": KeyboardInterrupt()}
    with pytest.raises(KeyboardInterrupt):
        run(experiment, out, tmp_path)
    assert len(trainer.calls) == 4
    trainer.fate = {}
    said = []
    run(experiment, out, tmp_path, say=said.append)
    assert len(trainer.calls) == 4 + 5  # three were finished, the fourth is tried again
    assert "3 of them finished" in said[0]
    assert "kept" in said[1]
    run(experiment, out, tmp_path)
    assert len(trainer.calls) == 9
    assert all(cell.status == "finished" for cell in read(out).cells)


def test_a_failed_cell_is_recorded_and_the_sweep_goes_on(tmp_path, trainer):
    out, label = tmp_path / "out", "full, rate 0.001, seed 0"
    trainer.fate = {label: RuntimeError("RESOURCE_EXHAUSTED: out of memory\n  while allocating")}
    results = run(make(), out, tmp_path)
    assert [result["status"] for result in results] == ["failed"] + ["finished"] * 7
    cell = read(out).cells[0]
    assert cell.status == "failed"
    assert cell.result["message"] == "RuntimeError: RESOURCE_EXHAUSTED: out of memory while allocating"
    trainer.fate = {}
    run(make(), out, tmp_path)  # a failed cell is tried again
    assert read(out).cells[0].status == "finished"


def snapshot(folder: Path):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_another_configuration_is_refused_and_nothing_overwritten(tmp_path, trainer):
    out = tmp_path / "out"
    run(make(), out, tmp_path)
    before = snapshot(out)
    with pytest.raises(BadInput, match=r"another configuration \(.*train.steps is 4 there and 5 here"):
        run(make(train=Train(steps=5, batch=4)), out, tmp_path)
    with pytest.raises(BadInput, match="tune.seeds is 2 there and 3 here"):
        run(make(tune=Grid(learning_rate=(1e-3, 1e-2), seeds=3)), out, tmp_path)
    assert snapshot(out) == before


def test_a_directory_that_is_something_else_is_refused(tmp_path, trainer):
    (tmp_path / "file").write_text("x")
    with pytest.raises(BadInput, match="is a file"):
        run(make(), tmp_path / "file", tmp_path)
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "letter.txt").write_text("x")
    with pytest.raises(BadInput, match="holds files but no experiment.json"):
        run(make(), tmp_path / "home", tmp_path)
    with pytest.raises(BadInput, match="Cannot"):
        run(make(), tmp_path / "file" / "below", tmp_path)
    (tmp_path / "torn").mkdir()
    (tmp_path / "torn" / "experiment.json").write_text("{")
    with pytest.raises(BadInput, match="cannot be read"):
        run(make(), tmp_path / "torn", tmp_path)
    assert not trainer.calls


def test_what_a_variant_is_not_defined_for_is_refused_before_anything_runs(tmp_path, trainer):
    with pytest.raises(BadInput, match=r"Variant 'linformer': linformer is not defined for causal"):
        run(make(variants=("full", "linformer")), tmp_path / "out", tmp_path)
    with pytest.raises(BadInput, match=r"heads"):
        run(make(variants=("full", Variant("full", "thirds", heads=3))), tmp_path / "out", tmp_path)
    assert not trainer.calls
    assert not (tmp_path / "out").exists()


def test_missing_data_is_refused_before_anything_runs(tmp_path, trainer):
    with pytest.raises(BadInput, match="no archive"):
        run(make(task=Imdb(length=16, archive=str(tmp_path / "no.tar.gz"))), tmp_path / "out", tmp_path)
    assert not (tmp_path / "out").exists()


@pytest.mark.quick
def test_departures_name_what_differs_from_the_published_setting():
    table = Table(source="s", tag="exact", precision=0.1, rows={"full": {"test": 1.0}})
    published = make(published=table)
    ours = make(
        published=table,
        train=Train(steps=400, batch=4, evaluate_every=2, keep=1),
        tune=Grid(learning_rate=(1e-3,), seeds=5),
    )
    assert departures(published, published) == {}
    found = departures(ours, published)
    assert found["full"][0] == "train.steps is 400, published with 4"
    assert found["full"][1] == "learning rates 0.001, published with 0.001, 0.01"
    assert len(found["full"]) == 2  # when we look and what we keep does not matter, nor do more seeds
    assert found["linear"] == found["full"][1:]  # its steps are its own in both
    assert departures(make(variants=("full", "retention")), published)["retention"] == [
        "the published configuration has no such variant"
    ]
    assert set(departures(ours, None)) == {"full", "linear"}


@pytest.mark.quick
def test_the_time_left_is_judged_by_variant_then_by_steps():
    cells = plan(make(train=Train(steps=4, batch=4, stop_at=0.9)))  # full: 4 steps, linear: 3 steps
    full, linear = (next(c for c in cells if c.label == label) for label in ("full", "linear"))
    assert remaining(cells, {}) is None
    assert remaining([], {full: Ended(8.0, 4, 8.0)}) is None
    # Solved after 2 of 4 steps, 1 s each, and tested for 6 s: its like will be too. Another variant takes at
    # most all of its steps, and is tested once.
    left = remaining([full, linear], {full: Ended(8.0, 2, 2.0)})
    assert left == (pytest.approx(8.0 + 6.0 + 3 * 1.0), True) and str(left) == "at most about 17 s left"
    left = remaining([full, linear], {full: Ended(8.0, 4, 8.0), linear: Ended(1.0, 3, 1.0)})
    assert left == (pytest.approx(9.0), False) and str(left) == "about 9 s left"
    other = next(
        c for c in cells if c.label == "full" and c.run.train.learning_rate != full.run.train.learning_rate
    )
    again = next(c for c in cells if c.label == "full" and c.run.seed == 1)
    ended = {full: Ended(8.0, 4, 8.0), other: Ended(2.0, 1, 2.0)}
    assert remaining([again], ended).seconds == pytest.approx(8.0)
    assert remaining([other], {full: Ended(8.0, 4, 8.0)}).seconds == pytest.approx(8.0)
    assert [duration(s) for s in (5, 65, 3660)] == ["5 s", "1 min 5 s", "1 h 1 min"]


def test_a_real_sweep_trains_and_its_record_is_what_the_report_reads(tmp_path):
    experiment = make(tune=Grid(seeds=1))
    results = run(experiment, tmp_path / "out", tmp_path)
    assert [result["status"] for result in results] == ["finished", "finished"]
    found = read(tmp_path / "out")
    assert found.labels == ["full", "linear"]
    assert all(cell.score("test", "accuracy") is not None for cell in found.cells)
    assert {cell["digest"] for cell in found.experiment["cells"]} == {
        cell.config["digest"] for cell in found.cells
    }


@pytest.mark.quick
def test_weight_decays_multiply_the_grid_and_stand_in_name_and_record():
    grid = Grid(learning_rate=(1e-3, 1e-2), weight_decay=(0.0, 0.1), seeds=2)
    variants = ("full", Variant("linear", weight_decay=0.5))
    cells = plan(make(tune=grid, variants=variants))
    assert len(cells) == 2 * (4 + 2)  # one with a weight decay of its own leaves that grid
    assert len({c.directory for c in cells}) == len({digest(c.run) for c in cells}) == 12
    assert cells[1].name == "full, rate 0.001, decay 0.1, seed 0"
    assert cells[1].directory == "cells/full_rate0.001_decay0.1_seed0"
    assert {c.directory for c in cells if c.label == "linear" and c.run.seed == 0} == {
        "cells/linear_rate0.001_seed0",
        "cells/linear_rate0.01_seed0",
    }
    with pytest.raises(BadInput, match="no meaning for sgd"):
        plan(make(tune=grid, train=Train(steps=4, batch=4, optimizer="sgd")))


def test_the_report_takes_the_best_pair_of_rate_and_weight_decay(tmp_path, trainer):
    """Validation decides; scores of different weight decays are never averaged as if they were seeds."""
    scores = {(1e-3, 0.0): 0.5, (1e-3, 0.1): 0.7, (1e-2, 0.0): 0.6, (1e-2, 0.1): 0.4}
    grid = Grid(learning_rate=(1e-3, 1e-2), weight_decay=(0.0, 0.1), seeds=2)
    out = tmp_path / "out"
    experiment = make(tune=grid, variants=("full",))
    run(experiment, out, tmp_path)
    for cell in plan(experiment):
        path = out / cell.directory / "result.json"
        result = json.loads(path.read_text())
        value = scores[cell.run.train.learning_rate, cell.run.train.weight_decay] + 0.01 * cell.run.seed
        result["metrics"] = {split: {"accuracy": value} for split in ("validation", "test")}
        write_json(path, result)
    (summary,) = summarize(read(out))
    assert summary.best.learning_rate == 1e-3
    assert {cell.weight_decay for cell in summary.best.cells} == {0.1}
    assert summary.counts == {"finished": 8}
    assert summary.scores["test"] == pytest.approx({0: 0.7, 1: 0.71})
    assert [rate.validation for rate in summary.rates] == pytest.approx([0.705, 0.405])
    assert summary.notes == ("weight decay 0.1, the best of 0, 0.1",)


@pytest.mark.slow  # two processes and six runs: half a minute
def test_a_sweep_killed_inside_a_cell_ends_as_if_it_never_was(tmp_path):
    """SIGTERM in the second cell: the first is kept as it is, the second goes on from where it stood."""
    data, whole, out = tmp_path / "data", tmp_path / "whole", tmp_path / "out"
    sweep_worker.go(whole, data)
    first, second, *_ = json.loads((whole / "experiment.json").read_text())["cells"]
    command = [sys.executable, "-m", "tests.sweep_worker", str(out), str(data)]
    worker = subprocess.Popen(command, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)})
    log = out / second["directory"] / "metrics.jsonl"
    until = time.monotonic() + 120
    while not (log.is_file() and log.stat().st_size) and time.monotonic() < until and worker.poll() is None:
        time.sleep(0.002)
    worker.terminate()
    assert worker.wait(60) == 143
    kept = (out / first["directory"] / "result.json").read_bytes()
    assert not (out / second["directory"] / "result.json").exists()
    said = []
    results = sweep_worker.go(out, data, said.append)
    assert [result["status"] for result in results] == ["finished"] * 4
    assert (out / first["directory"] / "result.json").read_bytes() == kept
    assert "runs 4, 1 of them finished" in said[0] and "kept" in said[1]
    clock = {"seconds", "steps_per_s", "tokens_per_s"}
    for cell in (first, second):
        lines = [
            [
                {k: v for k, v in line.items() if k not in clock}
                for line in read_metrics(where / cell["directory"])
            ]
            for where in (whole, out)
        ]
        assert lines[0] == lines[1]
