"""A run directory: what is written, what is refused, when training stops."""

from __future__ import annotations

import json
import math
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.train.toy import Toy, arrays, toy_model, toy_run
from transformer_jax.checkpoint import restore_latest
from transformer_jax.errors import BadInput
from transformer_jax.parallel.group import GRACE
from transformer_jax.train import loop, metrics
from transformer_jax.train.loop import train
from transformer_jax.train.metrics import of_sums, reached, read_metrics
from transformer_jax.train.progress import Bar, Lines, Silent
from transformer_jax.train.run import alone, claim, digest
from transformer_jax.train.state import dismantle


@pytest.fixture(autouse=True)
def toy(monkeypatch):
    monkeypatch.setattr(loop, "build_model", toy_model)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return tmp_path_factory.mktemp("data")


def go(run, out, data, **more):
    return train(run, out, data=data, progress=Silent(), **more)


def last(out, parts):
    return restore_latest(out / "checkpoints", parts)


@pytest.mark.quick
def test_a_run_writes_its_record(tmp_path, data):
    out = tmp_path / "deep" / "run"
    run = toy_run(steps=20, evaluate_every=8)
    result = go(run, out, data, label="toy", command="run it")
    config = json.loads((out / "config.json").read_text())
    assert config["label"] == "toy" and config["command"] == "run it" and config["digest"] == digest(run)
    assert config["config"]["train"]["steps"] == 20 and config["config"]["task"]["name"] == "copy"
    assert {"python", "jax", "jaxlib", "flax", "optax", "transformer_jax"} <= config["versions"].keys()
    assert config["device"]["count"] == jax.device_count() and config["seed"] == 0
    assert json.loads((out / "result.json").read_text()) == result
    assert result["status"] == "finished" and result["step"] == 20
    assert result["metrics"].keys() == {"validation", "test"} and result["baselines"]["chance"] == 0.2
    assert result["parameters"] == sum(x.size for x in dismantle(toy_model(run))[1].values())
    assert result["notes"] == {"toy": "a stand-in"} and result["steps_per_s"] > 0 and result["data_wait"] >= 0
    lines = read_metrics(out)
    assert [(line["step"], line["split"]) for line in lines if line["split"] != "train"] == [
        (8, "validation"),
        (16, "validation"),
        (20, "validation"),
        (20, "test"),
    ]
    assert [line["step"] for line in lines if line["split"] == "train"] == [5, 10, 15, 20]
    assert all(
        {"loss", "accuracy", "seconds", "learning_rate", "gradient_norm"} <= line.keys()
        for line in lines
        if line["split"] == "train"
    )
    assert list((out / "tensorboard").iterdir())
    assert [p.name for p in sorted((out / "checkpoints").iterdir())] == ["16", "20"]


def test_training_lines_average_over_every_target_since_the_last(tmp_path, data):
    """Against a plain loop over the same batches."""
    run = toy_run(steps=6, log_every=3, schedule="constant")
    go(run, tmp_path, data)
    from transformer_jax.train.optimizer import update_rule
    from transformer_jax.train.state import initial
    from transformer_jax.train.step import train_step

    skeleton, params, rest = dismantle(toy_model(run))
    numbers = {"peak": run.train.learning_rate, "weight_decay": run.train.weight_decay}
    state = initial(params, rest, update_rule(run.train), seed=0, **numbers)
    step = jax.jit(lambda state, batch: train_step(skeleton, run.train, state, batch))
    sums = []
    for number in range(6):
        batch = run.task.examples(0, np.arange(8 * number, 8 * number + 8), number)
        state, found = step(state, batch)
        sums.append(jax.device_get(found))
    lines = [line for line in read_metrics(tmp_path) if line["split"] == "train"]
    for line, part in zip(lines, (sums[:3], sums[3:]), strict=True):
        assert math.isclose(
            line["loss"], sum(s["loss"] for s in part) / sum(s["weight"] for s in part), rel_tol=1e-5
        )
    model = last(tmp_path, {"model": {"params": params, "rest": rest}}).parts["model"]
    for name, value in model["params"].items():
        np.testing.assert_allclose(value, state.params[name], rtol=2e-5, atol=1e-6)


def test_evaluation_looks_at_every_example_once(tmp_path, data):
    """12 examples in batches of 8: the last batch is padded, and the padding does not count."""
    metrics = [
        go(toy_run(steps=2, evaluation_batch=size), tmp_path / str(size), data)["metrics"] for size in (8, 5)
    ]
    for other in metrics[1:]:
        for split in ("validation", "test"):
            for name in ("loss", "accuracy"):
                assert math.isclose(other[split][name], metrics[0][split][name], rel_tol=1e-5)


def test_dispatches_change_no_bit(tmp_path, data):
    """One step per call or as many as the program likes: the same parameters."""
    states = []
    for number, per_call in enumerate((1, None)):
        run = toy_run(steps=20, steps_per_dispatch=per_call, evaluate_every=7, dropout=0.1)
        go(run, tmp_path / str(number), data)
        _, params, rest = dismantle(toy_model(run))
        states.append(last(tmp_path / str(number), {"model": {"params": params, "rest": rest}}).parts)
    for other in states[1:]:
        for a, b in zip(arrays(states[0]), arrays(other), strict=True):
            np.testing.assert_array_equal(a, b)
    assert int(states[0]["model"]["rest"]["calls"]) == 20


def test_a_finished_run_is_returned_and_not_touched(tmp_path, data):
    run = toy_run(steps=3)
    result = go(run, tmp_path, data)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()}
    assert go(run, tmp_path, data) == result
    assert before == {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()}


@pytest.mark.parametrize("given, warned", [("1e-4", True), ("300", False)])
def test_a_run_says_at_once_when_its_grace_is_shorter_than_its_saves(
    tmp_path, data, capsys, monkeypatch, given, warned
):
    monkeypatch.setenv(GRACE, given)
    result = train(toy_run(steps=4, save_every=2), tmp_path, data=data, progress=Lines())
    said = [line for line in capsys.readouterr().out.splitlines() if "A save took" in line]
    assert result["save_seconds"] > 0
    assert len(said) == warned and all(f"{float(given):g} s from SIGTERM" in line for line in said)


def test_a_grace_that_is_no_number_is_refused_before_anything_is_written(tmp_path, data, monkeypatch):
    monkeypatch.setenv(GRACE, "five minutes")
    with pytest.raises(BadInput, match="five minutes"):
        go(toy_run(), tmp_path / "run", data)
    assert not (tmp_path / "run").exists()


def test_a_signal_while_the_result_is_written_ends_the_process_and_not_the_run(tmp_path, data, monkeypatch):
    """What would follow the run (the next one of a sweep) must not begin; the run itself is finished."""
    write = loop.write_json

    def signalled(path, value):
        signal.raise_signal(signal.SIGTERM)
        write(path, value)

    monkeypatch.setattr(loop, "write_json", signalled)
    with pytest.raises(SystemExit) as ended:
        go(toy_run(), tmp_path / "run", data)
    assert ended.value.code == 143
    monkeypatch.undo()
    assert go(toy_run(), tmp_path / "run", data)["status"] == "finished"  # read, not trained: no toy any more


def test_in_a_store_the_record_is_whole_before_there_is_a_result(tmp_path, data, monkeypatch):
    """An object cannot be appended to: its lines are written with each checkpoint, and after the test."""
    splits, write = [], loop.write_json

    def looked(path, value):
        splits.append([line["split"] for line in read_metrics(tmp_path / "run")])
        write(path, value)

    monkeypatch.setattr(loop, "write_json", looked)
    monkeypatch.setattr(metrics, "remote", lambda path: True)
    go(toy_run(), tmp_path / "run", data)
    assert [found[-1] for found in splits] == ["test"] and splits[0].count("train") == 4
    assert not (tmp_path / "run" / "tensorboard").exists()


def test_another_configuration_is_refused_and_nothing_overwritten(tmp_path, data):
    go(toy_run(steps=3), tmp_path, data)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(BadInput) as error:
        go(toy_run(steps=4, seed=2), tmp_path, data)
    assert "train.steps is 3 there and 4 here" in str(error.value) and "seed is 0 there and 2 here" in str(
        error.value
    )
    assert before == {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}


def test_a_directory_in_which_another_process_trains_is_refused(tmp_path, data):
    run = toy_run(steps=3)
    with alone(tmp_path), pytest.raises(BadInput, match="Another process is training"):
        go(run, tmp_path, data)
    assert not (tmp_path / "metrics.jsonl").exists()
    go(run, tmp_path, data)


def test_a_directory_that_cannot_be_written_is_refused(tmp_path, data, monkeypatch):
    (tmp_path / "file").write_text("")
    with pytest.raises(BadInput, match="Cannot make the directory"):
        go(toy_run(), tmp_path / "file" / "run", data)
    monkeypatch.setattr("os.access", lambda path, mode: False)
    with pytest.raises(BadInput, match="Cannot write"):
        go(toy_run(), tmp_path / "run", data)


def test_a_torn_record_is_refused(tmp_path):
    claim(toy_run(), tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(BadInput, match="cannot be read"):
        claim(toy_run(), tmp_path)


def test_stops_when_solved(tmp_path, data):
    run = toy_run(steps=50, evaluate_every=5, stop_at=0.0)
    result = go(run, tmp_path, data)
    assert result["status"] == "solved" and result["step"] == 5 and "test" in result["metrics"]


class Exploding(Toy):
    """Its parameters become useless after 13 steps, as a loss that overflows would make them."""

    def __call__(self, tokens, **layout):
        logits, state = super().__call__(tokens, **layout)
        return logits / jnp.where(self.calls[...] >= 13, 0.0, 1.0), state


@pytest.mark.quick
@pytest.mark.parametrize("per_call", [1, 4])
def test_a_loss_that_is_not_finite_stops_the_run(tmp_path, data, monkeypatch, per_call):
    from flax import nnx

    def build(run, key=None):
        return Exploding(run.model, run.task.vocabulary, nnx.Rngs(run.seed if key is None else key))

    monkeypatch.setattr(loop, "build_model", build)
    run = toy_run(steps=40, save_every=5, evaluate_every=100, steps_per_dispatch=per_call, log_every=1)
    result = go(run, tmp_path, data)
    assert result["status"] == "diverged" and result["step"] == 14
    assert "not finite at step 14" in result["message"] and "step 10 in" in result["message"]
    assert str(tmp_path / "checkpoints" / "10") in result["message"]
    assert sorted(int(path.name) for path in (tmp_path / "checkpoints").iterdir()) == [5, 10]
    _, params, rest = dismantle(build(run))
    kept = last(tmp_path, {"model": {"params": params, "rest": rest}})
    assert kept.step == 10 and all(np.isfinite(x).all() for x in arrays(kept.parts))
    assert max(line["step"] for line in read_metrics(tmp_path)) == 13
    assert go(run, tmp_path, data) == result


def test_a_damaged_checkpoint_is_named_and_the_one_before_it_used(tmp_path, data, monkeypatch):
    run = toy_run(steps=20, save_every=5, evaluate_every=100)
    whole = go(run, tmp_path / "whole", data)
    out = tmp_path / "run"
    go(run, out, data)
    (out / "result.json").unlink()
    for path in (out / "checkpoints" / "20").rglob("d/*"):
        path.write_bytes(path.read_bytes()[:20])
    said = []
    monkeypatch.setattr(Silent, "say", lambda self, sentence: said.append(sentence))
    result = go(run, out, data)
    assert any("20.damaged" in line for line in said) and any("from step 15" in line for line in said)
    assert result["metrics"] == whole["metrics"]
    steps = [(line["step"], line["split"]) for line in read_metrics(out)]
    assert len(steps) == len(set(steps))


def test_bits_per_byte_is_the_loss_in_bits():
    found = of_sums({"loss": 10 * math.log(2), "correct": 1.0, "weight": 5.0}, "bits_per_byte")
    assert math.isclose(found["bits_per_byte"], 2.0) and found["accuracy"] == 0.2
    assert "bits_per_byte" not in of_sums({"loss": 1.0, "correct": 1.0, "weight": 5.0}, "accuracy")
    assert reached({"bits_per_byte": 1.9}, "bits_per_byte", 2.0)
    assert not reached({"accuracy": 0.98}, "accuracy", 0.99) and reached({"accuracy": 0.99}, "accuracy", 0.99)


def test_lines_say_speed_and_time_left(tmp_path, data, capsys):
    train(toy_run(steps=20), tmp_path, data=data, progress=Lines(), label="mine")
    said = capsys.readouterr().out
    assert (
        "mine  step 20/20  train  loss" in said
        and "steps/s" in said
        and "tokens/s" in said
        and "left" in said
    )
    assert "validation  loss" in said


def test_a_bar_runs_to_its_end(tmp_path, data):
    bar = Bar()
    train(toy_run(steps=10), tmp_path, data=data, progress=bar)
    assert bar.bar.finished


def test_a_trace_of_some_steps_changes_nothing(tmp_path, data):
    run = toy_run(steps=6, steps_per_dispatch=1)
    traced = toy_run(steps=6, steps_per_dispatch=1, profile=2)
    assert digest(run) == digest(traced)
    plain, other = (go(r, tmp_path / name, data) for r, name in ((run, "plain"), (traced, "traced")))
    assert plain["metrics"] == other["metrics"]
    assert not (tmp_path / "plain" / "profile").exists()
    (trace,) = (tmp_path / "traced" / "profile").rglob("*.xplane.pb")
    assert trace.stat().st_size > 0
