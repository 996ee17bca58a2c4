"""The notebook runs, and says the same as the script beside it."""

from __future__ import annotations

import os
from pathlib import Path

import jupytext
import nbformat
import pytest
from nbclient import NotebookClient

ROOT = Path(__file__).parents[1]
NOTEBOOK = ROOT / "notebooks" / "quickstart.ipynb"


def cells(path: Path) -> list[tuple[str, str]]:
    return [(cell.cell_type, cell.source.strip()) for cell in jupytext.read(path).cells]


@pytest.mark.quick
def test_notebook_and_script_are_one():
    """Edit the script, then `jupytext --to ipynb --execute notebooks/quickstart.py`."""
    assert cells(NOTEBOOK) == cells(NOTEBOOK.with_suffix(".py"))


@pytest.mark.quick
def test_the_notebook_is_kept_with_what_it_shows():
    outputs = [output for cell in nbformat.read(NOTEBOOK, 4).cells for output in cell.get("outputs", ())]
    assert any("image/png" in output.get("data", {}) for output in outputs)
    assert not any(output.output_type == "error" for output in outputs)


def test_the_notebook_runs(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]))
    notebook = nbformat.read(NOTEBOOK, 4)
    NotebookClient(
        notebook, timeout=600, kernel_name="python3", resources={"metadata": {"path": str(ROOT)}}
    ).execute()
