from __future__ import annotations

import json
import shutil

import pytest

from tests.report.test_write import PUBLISHED
from transformer_jax.cli import main
from transformer_jax.errors import BadInput
from transformer_jax.report.keep import POINTS, keep
from transformer_jax.report.results import read
from transformer_jax.report.write import lines, write


@pytest.fixture
def root(fabricate, tmp_path):
    scores = {
        "full, rotary": {0.1: [0.99, 0.97, 0.98, 1.0, 0.96], 0.2: [0.5, "diverged", "failed", 0.4, 0.3]},
        "linear": {0.1: [0.2, 0.3, 0.1, "unfinished", 0.2]},
    }
    tests = {"full, rotary": {"64": 1.0, "1024": 0.4}, "linear": {"64": 0.3, "1024": 0.1}}
    command = f"transformer-jax run /home/someone/recall.py --out {tmp_path}/results --data={tmp_path}/data"
    root = fabricate(scores, tests=tests, published=PUBLISHED, length=64, command=command)
    failure = next(root.glob("cells/*/failed.json"))
    message = f"no space in {root}/cells/x/checkpoints, and/or https://example.org/a/b"
    record = {"status": "failed", "message": message, "traceback": "File /home/x.py"}
    failure.write_text(json.dumps(record))
    return root


def said(directory):
    """Everything that `report --json` says, but where it was read from."""
    return [{k: v for k, v in line.items() if k != "directory"} for line in lines([directory])]


def test_what_is_kept_says_the_same_as_what_was_run(root, tmp_path):
    before, tables = said(root), write(read(root)).with_name("report.csv").read_text()
    about = (read(root).dates(), read(root).devices(), read(root).versions())
    kept = keep(read(root), tmp_path / "kept" / "recall")
    shutil.rmtree(root)
    assert said(kept) == before
    assert write(read(kept)).with_name("report.csv").read_text() == tables
    assert (read(kept).dates(), read(kept).devices(), read(kept).versions()) == about


def test_verdicts_come_from_the_records_alone(root):
    before = said(root)
    page = write(read(root))
    shutil.rmtree(page.parent)
    assert said(root) == before
    verdicts = [line["verdicts"] for line in before]
    assert verdicts[0]["test/64"]["word"] == "reproduced"


def test_no_path_of_this_machine_is_kept(root, tmp_path):
    kept = keep(read(root), tmp_path / "kept")
    write(read(kept))
    files = [path for path in kept.rglob("*") if path.is_file()]
    assert {path.name for path in files} >= {"experiment.json", "runs.jsonl", "report.html", "curves.svg"}
    for path in files:
        text = path.read_text()
        assert str(tmp_path) not in text and "/home/" not in text, path
    assert "run recall.py --out" in read(kept).experiment["command"]
    (failed,) = (cell for cell in read(kept).cells if cell.status == "failed")
    assert failed.result["message"] == "no space in cells/x/checkpoints, and/or https://example.org/a/b"
    assert "traceback" not in failed.result


def test_kept_reports_are_the_same_bytes_each_time(root, tmp_path):
    kept = keep(read(root), tmp_path / "kept")
    page = write(read(kept))
    first = {path.name: path.read_bytes() for path in page.parent.iterdir()}
    write(read(kept))
    assert {path.name: path.read_bytes() for path in page.parent.iterdir()} == first
    assert not any(name.endswith(".png") for name in first)


def test_curves_are_thinned_and_end_where_they_ended(root, tmp_path):
    cell = next(cell for cell in read(root).cells if cell.done)
    curve = [{"step": s, "split": "validation", "accuracy": s / 999, "loss": 1.0} for s in range(1000)]
    (root / cell.path / "metrics.jsonl").write_text("\n".join(map(json.dumps, curve)))
    kept = next(c for c in read(keep(read(root), tmp_path / "kept")).cells if c.path == cell.path).curve
    assert 0.5 * POINTS < len(kept) <= POINTS
    assert kept[-1] == {"step": 999, "split": "validation", "accuracy": 1.0}
    steps = [line["step"] for line in kept]
    assert len({after - before for before, after in zip(steps, steps[1:], strict=False)}) == 1


def test_records_of_other_kinds_are_kept_too(root, tmp_path):
    (root / "bench.jsonl").write_text('{"name": "full", "file": "/a/b/mine.py"}\n')
    kept = keep(read(root), tmp_path / "kept")
    assert json.loads((kept / "bench.jsonl").read_text()) == {"name": "full", "file": "mine.py"}


def test_the_command_line_keeps_and_reports_there(root, tmp_path, capsys):
    kept = tmp_path / "kept"
    assert main(["report", str(root), "--keep", str(kept)]) == 0
    assert (kept / "report" / "report.html").is_file()
    assert "0.980" in capsys.readouterr().out
    assert main(["report", str(kept)]) == 0
    assert main(["report", str(root), "--keep", str(kept)]) == 0  # again, over what was kept
    assert main(["report", str(root), str(kept), "--keep", str(tmp_path / "other")]) == 2
    assert "one directory of results, not 2" in capsys.readouterr().err


def test_a_place_that_is_taken_is_refused(root, tmp_path):
    with pytest.raises(BadInput, match="are to be kept"):
        keep(read(root), root)
    taken = tmp_path / "taken"
    taken.mkdir()
    (taken / "thesis.tex").write_text("x")
    with pytest.raises(BadInput, match="something else"):
        keep(read(root), taken)
    with pytest.raises(BadInput, match="it is a file"):
        keep(read(root), taken / "thesis.tex")


def test_a_torn_record_is_named(root, tmp_path):
    kept = keep(read(root), tmp_path / "kept")
    (kept / "runs.jsonl").write_text('{"directory"')
    with pytest.raises(BadInput, match=r"runs.jsonl is not readable"):
        read(kept)
