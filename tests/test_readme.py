"""What the README shows works as it stands."""

from __future__ import annotations

import os
import runpy
import subprocess
import sys
from pathlib import Path

from transformer_jax import experiment

ROOT = Path(__file__).resolve().parent.parent
READ = runpy.run_path(str(ROOT / ".ci" / "read.py"))


def test_the_mechanism_of_the_readme_passes_every_check(tmp_path):
    file = tmp_path / "dilated_window.py"
    file.write_text(READ["block"]("mechanism"))
    # Another process: a mechanism that is defined here would enter the catalogue of the other tests.
    done = subprocess.run(
        [sys.executable, "-m", "transformer_jax", "check", str(file)],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines()[-1] == "Every check passed."


def test_the_experiment_of_the_readme_loads(tmp_path):
    file = tmp_path / "windows.py"
    file.write_text(READ["block"]("experiment"))
    written, doc = experiment.load(file)
    assert doc.startswith("Does a window")
    assert [variant.label for variant in written.variants] == ["full", "sliding_window", "hybrid"]
    assert written.at("single", {"train.steps": "10"}).model.width == 256
