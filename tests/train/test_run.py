"""The record of a run: complete, stable, and enough to build the run again."""

from __future__ import annotations

import dataclasses
import json
import subprocess

import pytest

from tests.train.toy import toy_run
from transformer_jax.data.tasks import TASKS
from transformer_jax.errors import BadInput
from transformer_jax.model.config import Transformer, mechanism
from transformer_jax.train.config import Train
from transformer_jax.train.run import Run, claim, digest, load_run, resolved, versions

pytestmark = pytest.mark.quick


def real_run(**train):
    model = Transformer(
        mixers=(mechanism("full"), mechanism("sliding_window", window=16)),
        layers=4,
        width=32,
        heads=2,
        kv_heads=1,
    )
    return Run(
        task=TASKS["induction_heads"](length=32, test_up_to=64),
        model=model,
        train=Train(**{"steps": 10, "batch": 4, "clip": None, "stop_at": 0.9} | train),
        seed=7,
    )


def test_a_run_comes_back_from_its_record(tmp_path):
    run = real_run()
    claim(run, tmp_path, label="x")
    again = load_run(tmp_path)
    assert again == run and digest(again) == digest(run)


def test_the_record_is_json_and_names_every_setting():
    settings = resolved(real_run())
    assert json.loads(json.dumps(settings)) == settings
    assert settings["train"].keys() == {field.name for field in dataclasses.fields(Train)}
    assert settings["model"].keys() == {field.name for field in dataclasses.fields(Transformer)}


def test_every_setting_moves_the_digest():
    run = real_run()
    others = [
        real_run(steps=11),
        dataclasses.replace(run, seed=8),
        dataclasses.replace(run, model=dataclasses.replace(run.model, width=64)),
        dataclasses.replace(run, task=TASKS["induction_heads"](length=64, test_up_to=64)),
    ]
    assert len({digest(other) for other in (run, *others)}) == 5 and digest(run) == digest(real_run())


@pytest.mark.parametrize(
    "settings, said",
    [
        ({"optimizer": "rmsprob"}, "Unknown value of train.optimizer 'rmsprob'"),
        ({"steps": 0}, "train.steps=0 must be at least 1"),
        ({"steps": 1.5}, "wrong type"),
        ({"batch": 6, "accumulate": 4}, "does not divide"),
        ({"warmup": 30}, "a warm-up between 0 and 10"),
        ({"optimizer": "adam", "weight_decay": 0.1}, "no meaning for adam"),
        ({"clip": 0.0}, "None for no clipping"),
        ({"learning_rate": -1.0}, "must be above 0"),
    ],
)
def test_a_recipe_that_cannot_be_is_refused(settings, said):
    with pytest.raises(BadInput) as error:
        Train(**{"steps": 10, "batch": 4} | settings)
    assert said in str(error.value)


def test_a_record_of_something_else_is_refused(tmp_path):
    with pytest.raises(BadInput, match="has no config.json"):
        load_run(tmp_path)
    claim(real_run(), tmp_path)
    record = json.loads((tmp_path / "config.json").read_text())
    record["config"]["train"]["stepz"] = 3
    (tmp_path / "config.json").write_text(json.dumps(record))
    with pytest.raises(BadInput, match="did you mean 'train.steps'"):
        load_run(tmp_path)
    record["config"]["task"]["version"] = 0
    (tmp_path / "config.json").write_text(json.dumps(record))
    with pytest.raises(BadInput, match="version 0"):
        load_run(tmp_path)


def test_a_seed_must_be_a_whole_number():
    with pytest.raises(BadInput, match="wrong type"):
        toy_run(seed=1.5)
    with pytest.raises(BadInput, match="at least 0"):
        toy_run(seed=-1)


def test_the_commit_is_that_of_the_imported_code(monkeypatch):
    """One record for all that a process computes, whatever is committed while it does."""
    found = versions()

    def later(*_, **__):
        raise AssertionError("asked again")

    monkeypatch.setattr(subprocess, "run", later)
    assert versions() == found
