from __future__ import annotations

import io
import json

import numpy as np
import pytest
from rich.console import Console
from scipy import stats

from transformer_jax.report.compare import compared, scores, settings
from transformer_jax.report.results import read
from transformer_jax.report.write import lines, report

GPU = {"platform": "gpu", "kind": "H100", "count": 1, "processes": 1, "cores": 16}


def rows(sheet):
    return {row[:2]: row[2:] for row in sheet.rows}


@pytest.mark.quick
def test_differences_are_paired_and_their_interval_is_scipys(fabricate):
    rng = np.random.default_rng(0)
    before = rng.uniform(0.4, 0.6, size=5)
    after = before + rng.normal(0.1, 0.01, size=5)
    old = read(fabricate({"full": {0.1: list(before)}, "gone": {0.1: [0.5]}}, name="old"))
    new = read(fabricate({"full": {0.2: list(after)}, "added": {0.2: [0.5]}}, name="new"))
    sheet = scores(old, new)
    (difference,) = [row[2] for row in rows(sheet).values()]
    low, high = stats.ttest_rel(after, before).confidence_interval(0.95)
    assert difference == f"{np.mean(after - before):+.3f} ± {(high - low) / 2:.3f}"
    assert [column.name for column in sheet.columns[2:4]] == ["old", "new"]
    assert "Only in old: gone." in sheet.notes and "Only in new: added." in sheet.notes


@pytest.mark.quick
def test_few_seeds_have_a_range_and_no_common_seed_nothing(fabricate):
    old = read(fabricate({"a": {0.1: [0.5, 0.7]}, "b": {0.1: [0.5, "failed"]}}, name="old"))
    new = read(fabricate({"a": {0.1: [0.6, 0.6]}, "b": {0.1: ["failed", 0.6]}}, name="new"))
    found = rows(scores(old, new))
    assert found["a", "test"][2] == "+0.000 [-0.100, +0.100]"
    assert found["b", "test"][2] == "–"


@pytest.mark.quick
def test_every_difference_of_settings_versions_and_devices_is_named(fabricate):
    def made(name, width, steps, **more):
        kept = {
            label: {"model": {"width": w}, "train": {"steps": steps, "learning_rate": w}, "seed": 0}
            for label, w in (("a", width), ("b", 64))
        }
        return read(fabricate({"a": {0.1: [0.5]}, "b": {0.1: [0.5]}}, name=name, settings=kept, **more))

    old = made("old", 64, 100, versions={"jax": "0.10"}, tune={"learning_rate": [0.1], "seeds": 1})
    new = made("new", 128, 200, versions={"jax": "0.12"}, device=GPU, tune={"learning_rate": [], "seeds": 1})
    assert rows(settings(old, new)) == {
        ("model.width", "a"): ("64", "128"),
        ("train.steps", "all"): ("100", "200"),
        ("device", "all"): ("2 CPU cores", "1 × H100"),
        ("tune.learning_rate", "all"): ("[0.1]", "[]"),
        ("versions.jax", "all"): ("0.10", "0.12"),
    }
    same = settings(old, old)
    assert same.rows == () and "Nothing" in same.notes[0]


@pytest.mark.quick
def test_other_metrics_are_not_compared(fabricate):
    old = read(fabricate({"a": {0.1: [0.5]}}, name="old"))
    new = read(fabricate({"a": {0.1: [0.5]}}, name="new", metric="perplexity"))
    first, _ = compared(old, new)
    assert first.rows == () and "old measures accuracy, new perplexity" in first.notes[0]


def test_the_report_of_two_directories_has_the_comparison(fabricate):
    old = fabricate({"full": {0.1: [0.5, 0.7]}}, name="old")
    new = fabricate({"full": {0.1: [0.6, 0.8]}}, name="new", versions={"jax": "0.12"})
    console = Console(file=io.StringIO(), width=160)
    for page in report([old, new], console):
        for text in (page.read_text(), page.with_name("report.md").read_text()):
            assert "new beside old" in text and "+0.100 [+0.100, +0.100]" in text and "versions.jax" in text
    assert "new beside old" in console.file.getvalue()
    found = [json.loads(json.dumps(line)) for line in lines([old, new])]
    (difference,) = [line for line in found if line["kind"] == "difference"]
    assert difference["difference"]["mean"] == pytest.approx(0.1)
