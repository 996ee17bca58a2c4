from __future__ import annotations

import json

import pytest

from transformer_jax.report.results import read
from transformer_jax.report.summary import summarize
from transformer_jax.report.tradeoffs import best, drawable, figures
from transformer_jax.report.write import write

BYTES = {"full": 4096, "small": 256, "wasteful": 8192, "mid": 1024}


@pytest.fixture
def root(fabricate):
    scores = {"full": {0.1: [0.9]}, "small": {0.1: [0.3]}, "wasteful": {0.1: [0.8]}, "mid": {0.1: [0.2]}}
    root = fabricate(scores)
    for path in root.glob("cells/*/result.json"):
        result = json.loads(path.read_text())
        label = path.parent.name.partition("-")[0]
        path.write_text(json.dumps({**result, "state_bytes": BYTES[label]}))
    return root


def test_the_frontier_is_drawn_where_costs_differ(root):
    results = read(root)
    panels = drawable(summarize(results))
    (axis,) = panels  # FLOPs and time are the same for all
    assert "bytes per sequence" in axis
    assert panels[axis]["full"] == (4096, 0.9)
    assert best(panels[axis], higher_is_better=True) == ["small", "full"]
    assert best(panels[axis], higher_is_better=False) == ["small", "mid"]
    axes = figures(results)["tradeoffs"].axes[0]
    staircase = axes.lines[-1]
    assert [list(map(float, xy)) for xy in zip(*staircase.get_data(), strict=True)] == [
        [256, 0.3],
        [4096, 0.9],
    ]
    assert {text.get_text() for text in axes.texts} == {"small", "full"}


def test_the_figure_is_in_the_report(root):
    page = write(read(root))
    assert page.with_name("tradeoffs.svg").is_file()
    assert "no other beats" in page.read_text()


@pytest.mark.quick
def test_nothing_is_drawn_of_one_cost(fabricate):
    assert figures(read(fabricate({"a": {0.1: [0.9]}, "b": {0.1: [0.5]}}))) == {}
