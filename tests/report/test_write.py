from __future__ import annotations

import csv
import io
import json
import os
import re
from html.parser import HTMLParser

import pytest
from rich.console import Console

from transformer_jax.errors import BadInput
from transformer_jax.report.results import read
from transformer_jax.report.statistics import half_width
from transformer_jax.report.write import lines, report, write

PUBLISHED = {
    "source": "arXiv:2312.00752, Table 11",
    "tag": "exact",
    "precision": 0.0005,
    "selection": "best of grid",
    "rows": {"full, rotary": {"test/64": 1.0, "test/1024": 0.313}, "Mamba": {"test/64": 1.0}},
    "notes": {},
}


@pytest.fixture
def root(fabricate):
    scores = {
        "full, rotary": {0.1: [0.99, 0.97], 0.2: [0.5, "diverged"]},
        "linear": {0.1: [0.2, 0.3], 0.2: ["failed", 0.1]},
    }
    tests = {"full, rotary": {"64": 1.0, "1024": 0.4}, "linear": {"64": 0.3, "1024": 0.1}}
    return fabricate(scores, tests=tests, published=PUBLISHED, length=64)


class Page(HTMLParser):
    """Every tag with its attributes, the ids, and whether tags close in order."""

    VOID = {"meta", "br", "img", "path", "use", "rect", "line"}

    def __init__(self, text: str):
        super().__init__()
        self.attributes, self.open, self.text = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.attributes += [(tag, *attr) for attr in attrs]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.attributes += [(tag, *attr) for attr in attrs]

    def handle_endtag(self, tag):
        if tag not in self.VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def test_the_page_needs_no_network(root):
    text = write(read(root)).read_text()
    page = Page(text)
    assert page.open == []
    for tag, name, value in page.attributes:
        if name in ("src", "href", "xlink:href", "action", "data"):
            assert value.startswith("#"), (tag, name, value)
    assert not {"script", "link", "iframe", "img", "object"} & {tag for tag, *_ in page.attributes}
    assert not re.search(r"@import|https?://|url\((?!#)", text)
    ids = [value for _, name, value in page.attributes if name == "id"]
    assert len(ids) == len(set(ids))
    targets = [v for _, name, v in page.attributes if name in ("href", "xlink:href")]
    targets += re.findall(r"url\((#[^)]+)\)", text)
    assert {target.removeprefix("#") for target in targets} <= set(ids)


def test_the_page_says_everything_and_escapes_it(root):
    page = Page(write(read(root)).read_text())
    text = " ".join(page.text)
    for expected in (
        "Recall & friends",
        "Full attention recalls.",
        "A <docstring>.",
        "0.980 [0.970, 0.990]",
        "baseline: majority",
        "1 of 2",
        "12,345",
        "published: Mamba",
        "out of memory",
        "brings its own short convolution",
        "jax 0.10.2",
        "2 CPU cores",
        "arXiv:2312.00752, Table 11 (exact",
    ):
        assert expected in text, expected


def test_every_file_is_written_and_figures_too(root):
    folder = write(read(root)).parent
    names = {path.name for path in folder.iterdir()}
    assert {"report.md", "report.tex", "report.csv", "report.html"} <= names
    for figure in ("scores", "curves", "lengths", "rates"):
        assert {f"{figure}.png", f"{figure}.svg"} <= names


def test_the_csv_has_plain_numbers(fabricate):
    scores = [0.9, 0.8, 1 / 3, 0.7, 0.95]
    root = fabricate({"full": {0.1: scores}, "linear": {0.1: [0.2, "failed"]}}, tests={"full": {"64": 0.5}})
    path = write(read(root)).parent / "report.csv"
    rows = {(row["label"], row["test"]): row for row in csv.DictReader(path.open())}
    full, linear, chance = rows["full", "test"], rows["linear", "test"], rows["chance", "test"]
    assert float(full["mean"]) == pytest.approx(sum(scores) / 5, rel=1e-14)
    assert float(full["low"]) == 1 / 3  # in full, not rounded
    assert float(full["half_width"]) == half_width(scores)
    assert (full["n"], full["kind"], float(full["learning_rate"])) == ("5", "variant", 0.1)
    assert (linear["n"], linear["half_width"], float(linear["mean"])) == ("1", "", 0.2)
    assert (chance["kind"], float(chance["mean"]), chance["n"]) == ("baseline", 0.1, "")
    assert float(rows["full", "test/64"]["mean"]) == 0.5


def test_the_terminal_warns_of_different_versions(fabricate, root):
    other = fabricate({"full": {0.1: [0.9]}}, name="other", versions={"jax": "0.9"})
    console = Console(file=io.StringIO(), width=200)
    report([root, other], console)
    assert "different versions (jax 0.10.2 and 0.9)" in console.file.getvalue()
    assert "different versions" in (other / "report" / "report.html").read_text()


def test_lines_are_json_and_complete(root):
    found = [json.loads(json.dumps(line)) for line in lines([root])]
    assert [line["label"] for line in found] == ["full, rotary", "linear"]
    assert found[0]["scores"]["test"]["mean"] == pytest.approx(0.98)
    assert found[0]["verdicts"]["test/64"]["word"] == "reproduced"
    assert found[1]["runs"] == {"finished": 3, "failed": 1}


def test_an_unwritable_directory_is_refused(root):
    (root / "report").write_text("in the way")
    with pytest.raises(BadInput, match="it is a file: move it away"):
        write(read(root))
    assert os.path.isfile(root / "report")
