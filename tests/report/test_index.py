"""The summary of a folder of kept results; and the results that this repository keeps."""

from __future__ import annotations

import io
import re
import shutil
from pathlib import Path

import pytest
from rich.console import Console

from transformer_jax.report import index
from transformer_jax.report.keep import keep
from transformer_jax.report.measured import results
from transformer_jax.report.results import read
from transformer_jax.report.write import lines, report

ROOT = Path(__file__).resolve().parents[2]
KEPT = ROOT / "experiments" / "results"
BYTES = 250_000


@pytest.fixture
def folder(fabricate, tmp_path):
    published = {
        "source": "arXiv:1234.5678, Table 9",
        "tag": "exact",
        "precision": 0.01,
        "selection": "one recipe",
        "rows": {"full": {"test": 0.9, "test/64": 0.2}, "linear": {"test": 0.8}},
        "notes": {},
    }
    tests = {"full": {"64": 0.5}}
    scores = {"linear": {0.1: [0.7, 0.7]}, "full": {0.1: [0.9, 0.9]}}
    one = fabricate(scores, name="one", tests=tests, published=published, claim="It | recalls.")
    two = fabricate({"full": {0.1: [2.0], 0.2: [1.5]}}, name="two", metric="perplexity")
    for each in (one, two):
        keep(read(each), tmp_path / "kept" / each.name)
    return tmp_path / "kept"


def test_every_experiment_has_a_row_and_a_section(folder):
    text = index.page(index.held(folder))
    rows = [line for line in text.splitlines() if line.startswith("| `")]
    assert len(rows) == 2 == len(re.findall("^## ", text, re.MULTILINE))
    assert "2 variants, 1 rate, 2 seeds; 100 steps; 2 CPU cores, 20" in rows[0]
    assert "2 rates, 1 seed; 100 steps; 2 CPU cores" in rows[1]
    assert "accuracy: full 0.900, linear 0.700" in rows[0]  # the best first
    assert "2 did not reproduce, 1 reproduced" in rows[0]
    assert "perplexity: full 1.500 | none published" in rows[1]
    for expected in ("arXiv:1234.5678, Table 9 (exact", "jax 0.10.2", "(one/report/report.md)"):
        assert expected in text


def test_a_fraction_of_the_published_steps_is_said(fabricate):
    """As `experiment` writes a departure."""
    said = {"full": ["train.steps is 100, published with 35,000", "train.warmup is 1, published with 175"]}
    text = index.page([fabricate({"full": {0.1: [0.9]}}, departures=said)])
    assert "1 seed; 100 steps (published: 35,000); 2 CPU cores" in text


def test_report_of_the_folder_writes_all(folder):
    report([folder], Console(file=io.StringIO(), width=100))
    assert (folder / "README.md").read_text() == index.page(index.held(folder))
    assert (folder / "two" / "report" / "report.md").is_file()
    assert [Path(line["directory"]).name for line in lines([folder])] == ["one", "one", "two"]
    assert index.held(folder / "one") == []


@pytest.mark.quick
@pytest.mark.parametrize("directory", index.held(KEPT), ids=lambda path: path.name)
def test_what_is_kept_here_is_small_and_names_no_machine(directory):
    # The page is not in the repository: it repeats the figures.
    files = [path for path in directory.rglob("*") if path.is_file() and path.suffix != ".html"]
    assert sum(path.stat().st_size for path in files) <= BYTES
    for path in files:
        found = re.search(r"(?<![\w.:/<)\]~])/\w[\w.+-]*/\w\S*", path.read_text())
        assert not found, (path, found)


@pytest.mark.parametrize("directory", index.held(KEPT), ids=lambda path: path.name)
def test_every_table_and_verdict_here_comes_from_the_records(directory, tmp_path):
    """Written anew from them alone, the tables are those that the repository has."""
    copy = shutil.copytree(directory, tmp_path / directory.name, ignore=shutil.ignore_patterns("report"))
    report([copy], Console(file=io.StringIO(), width=100))
    said = (copy / "report" / "report.md").read_text()
    assert "verdict" in said or not results(copy).experiment["published"]
    for name in ("report.md", "report.csv", "report.tex"):
        assert (copy / "report" / name).read_text() == (directory / "report" / name).read_text(), (
            "run `transformer-jax report experiments/results`"
        )


def test_the_summaries_say_what_the_records_say():
    directories = index.held(KEPT)
    assert directories and (KEPT / "README.md").read_text() == index.page(directories), (
        "run `transformer-jax report experiments/results`"
    )
    table = index.overview([results(directory) for directory in directories])
    assert f"<!-- results -->\n\n{table}" in (ROOT / "README.md").read_text(), (
        "copy the first table of experiments/results/README.md into README.md, after <!-- results -->"
    )
