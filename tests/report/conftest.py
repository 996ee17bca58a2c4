"""Fabricated directories of results, as `run` would write them."""

from __future__ import annotations

import json

import pytest

DEVICE = {"platform": "cpu", "kind": "cpu", "count": 1, "processes": 1, "cores": 2}


@pytest.fixture
def fabricate(tmp_path):
    """fabricate({label: {rate: [score per seed]}}, ...) -> the directory.

    A score that is a word ("diverged", "failed", "unfinished") is that fate; the validation score is
    the test score, unless `validation` maps (label, rate) to another.
    """

    def make(
        scores,
        *,
        name="results",
        metric="accuracy",
        tests=None,
        validation=None,
        versions=None,
        device=DEVICE,
        **more,
    ):
        """tests: label -> test set -> score, or a score per seed."""
        root = tmp_path / name
        cells = []
        for label, rates in scores.items():
            for rate, seeds in rates.items():
                for seed, score in enumerate(seeds):
                    directory = f"cells/{label.replace(', ', '-')}-{rate}-{seed}"
                    cells.append(
                        {"label": label, "learning_rate": rate, "seed": seed, "directory": directory}
                    )
                    valid = (validation or {}).get((label, rate), score)
                    named = {
                        test: value[seed] if isinstance(value, list) else value
                        for test, value in (tests or {}).get(label, {}).items()
                    }
                    about = {"versions": versions or {"jax": "0.10.2"}, "device": device}
                    fake_cell(root / directory, score, valid, metric, named, about)
        experiment = {
            "title": "Recall & friends: 100% of_it",
            "claim": "Full attention recalls.",
            "doc": "A <docstring>.",
            "name": "fake",
            "scale": "smoke",
            "metric": metric,
            "digest": "0123456789abcdef",
            "variants": [{"label": label} for label in scores],
            "settings": {label: {"model": {"width": 64}, "train": {"steps": 100}} for label in scores},
            "cells": cells,
            "published": None,
            "departures": {},
            "versions": versions or {"jax": "0.10.2"},
            **more,
        }
        (root / "experiment.json").write_text(json.dumps(experiment))
        return root

    return make


def fake_cell(directory, score, validation, metric, tests, about):
    directory.mkdir(parents=True)
    config = {"label": "", "config": {"seed": 0}, **about}
    if score == "unfinished":
        return
    (directory / "config.json").write_text(json.dumps(config))
    if score == "failed":
        failure = {"status": "failed", "message": "out of memory: 3 GiB"}
        (directory / "failed.json").write_text(json.dumps(failure))
        return
    if score == "diverged":
        result = {"status": "diverged", "step": 7, "message": "loss is nan at step 7", "metrics": {}}
        (directory / "result.json").write_text(json.dumps(result))
        return
    steps = [{"step": s, "split": "validation", metric: validation * s / 100, "loss": 1.0} for s in (50, 100)]
    (directory / "metrics.jsonl").write_text("\n".join(map(json.dumps, steps)) + '\n{"step": 10')
    result = {
        "status": "finished",
        "step": 100,
        "metrics": {
            "validation": {metric: validation, "loss": 1.0},
            "test": {metric: score, "loss": 1.0},
            **{f"test/{name}": {metric: value, "loss": 1.0} for name, value in tests.items()},
        },
        "baselines": {"chance": 0.1, "majority": 0.2},
        "parameters": 12345,
        "state_size": 64,
        "state_bytes": 256,
        "flops": 2_500_000_000,
        "temporaries": 3 * 2**20,
        "notes": {"full": "brings its own short convolution"},
        "seconds": 12.5,
        "steps_per_s": 40.0,
        "data_wait": 0.0125,
        "tokens_per_s": 4000.0,
    }
    (directory / "result.json").write_text(json.dumps(result))
