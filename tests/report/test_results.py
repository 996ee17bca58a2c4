from __future__ import annotations

import pytest

from transformer_jax.errors import BadInput
from transformer_jax.report.results import differing_versions, read

pytestmark = pytest.mark.quick


def test_cells_have_their_fates(fabricate):
    results = read(fabricate({"full": {0.1: [0.9, "diverged", "failed", "unfinished"]}}))
    assert [cell.status for cell in results.cells] == ["finished", "diverged", "failed", "unfinished"]
    assert [cell.score("test", "accuracy") for cell in results.cells] == [0.9, None, None, None]


def test_a_torn_last_line_is_dropped(fabricate):
    results = read(fabricate({"full": {0.1: [0.9]}}))
    assert [line["step"] for line in results.cells[0].curve] == [50, 100]


def test_test_sets_are_sorted_by_their_number(fabricate):
    results = read(fabricate({"full": {0.1: [0.9]}}, tests={"full": {"1024": 0.1, "64": 0.9, "256": 0.5}}))
    assert results.tests == ["test/64", "test/256", "test/1024"]


def test_a_directory_without_results_is_refused(tmp_path, fabricate):
    with pytest.raises(BadInput, match="holds no results"):
        read(tmp_path)
    with pytest.raises(BadInput, match="no finished run"):
        read(fabricate({"full": {0.1: ["unfinished"]}}))


def test_unreadable_files_are_named(fabricate):
    root = fabricate({"full": {0.1: [0.9]}})
    (root / "experiment.json").write_text("{")
    with pytest.raises(BadInput, match="experiment.json is not readable"):
        read(root)


def test_versions_that_differ_are_found(fabricate):
    old = read(fabricate({"full": {0.1: [0.9]}}, name="old", versions={"jax": "0.9", "flax": "1"}))
    new = read(fabricate({"full": {0.1: [0.9]}}, name="new", versions={"jax": "0.10", "flax": "1"}))
    assert differing_versions([old, new]) == {"jax": ["0.10", "0.9"]}
    assert differing_versions([old, old]) == {}
