"""What the README and the guide show works as it stands."""

from __future__ import annotations

import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

from transformer_jax import experiment

ROOT = Path(__file__).resolve().parent.parent
READ = runpy.run_path(str(ROOT / ".ci" / "read.py"))

PROVE_SOME = """
import sys
from transformer_jax.attention.catalogue import load
from transformer_jax.conformance import prove, subjects
for mixer in load(sys.argv[1]):
    for subject in subjects(mixer):
        for check in ("definition_is_matched", "splitting_changes_nothing"):
            result = prove(subject, check)
            assert result.outcome == "passed", result
            print(result)
"""


@pytest.fixture(params=[("mechanism", "README.md"), ("fading", "docs/writing_a_mechanism.md")])
def mechanism(tmp_path, request):
    file = tmp_path / "mechanism_of_a_user.py"
    file.write_text(READ["block"](*request.param))
    return file


def python(*words) -> str:
    """Another process: a mechanism that is defined here would enter the catalogue of the other tests."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, *map(str, words)], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_mechanism_that_is_shown_is_right(mechanism):
    assert len(python("-c", PROVE_SOME, mechanism).splitlines()) == 2


@pytest.mark.slow
def test_the_mechanism_that_is_shown_passes_every_check(mechanism):
    said = python("-m", "transformer_jax", "check", mechanism)
    assert said.splitlines()[-1] == "Every check passed."


def test_the_experiment_of_the_readme_loads(tmp_path):
    file = tmp_path / "windows.py"
    file.write_text(READ["block"]("experiment"))
    written, doc = experiment.load(file)
    assert doc.startswith("Does a window")
    assert [variant.label for variant in written.variants] == ["full", "sliding_window", "hybrid"]
    assert written.at("single", {"train.steps": "10"}).model.width == 256
