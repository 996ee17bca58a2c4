"""A measurement runs part by part, goes on where it stopped, and is reported from its files."""

from __future__ import annotations

import json
from dataclasses import dataclass

import pytest

from transformer_jax import cli
from transformer_jax.errors import BadInput
from transformer_jax.experiment import Measurement
from transformer_jax.measurement import measure
from transformer_jax.report.results import device_in_words
from transformer_jax.report.write import report
from transformer_jax.train.run import device

pytestmark = pytest.mark.quick

ABOUT = {"name": "m", "scale": "smoke", "doc": "What it is.", "command": "transformer-jax run m"}


@dataclass(frozen=True)
class Counted:
    """Gives one row per part, and notes that it was asked."""

    lengths: tuple[int, ...] = (64, 128)
    fail_at: int | None = None

    def parts(self):
        return {f"T = {length}": lambda say, length=length: self.rows(length) for length in self.lengths}

    def rows(self, length):
        if length == self.fail_at:
            raise KeyboardInterrupt
        row = {"kind": "measurement", "length": length, "skipped": "", "step_temporaries": 1000 * length}
        return [
            row | {"name": "full", "step_ms": length**2},
            row | {"name": "linear", "step_ms": 100 * length},
        ]


def test_it_goes_on_where_it_stopped(tmp_path):
    out, said = tmp_path / "m", []
    stopped = Measurement(title="t", measure=Counted(fail_at=128))
    with pytest.raises(KeyboardInterrupt):
        measure(stopped, out, about=ABOUT, say=said.append)
    assert len((out / "measurements.jsonl").read_text().splitlines()) == 2
    record = json.loads((out / "experiment.json").read_text())
    assert record["kind"] == "measurement" and record["versions"]["jax"] and record["device"]["platform"]

    whole = Measurement(title="t", measure=Counted())
    with pytest.raises(BadInput, match="other settings"):
        measure(whole, out, about=ABOUT)
    first = measure(whole, tmp_path / "n", about=ABOUT)
    again = measure(whole, tmp_path / "n", about=ABOUT, say=said.append)
    assert first == again and said[-2:] == ["T = 64: kept", "T = 128: kept"]
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "file").write_text("")
    with pytest.raises(BadInput, match="something else"):
        measure(whole, tmp_path / "other", about=ABOUT)


def test_the_command_line_names_its_settings(tmp_path):
    measurement = Measurement(title="t", measure=Counted(), scales={"single": {"lengths": (256,)}})
    assert measurement.at("single").measure.lengths == (256,)
    assert measurement.at("single", {"measure.lengths": "32,64"}).measure.lengths == (32, 64)
    for name, says in (("measure.lenghts", "did you mean"), ("train.steps", "choose from measure.fail_at")):
        with pytest.raises(BadInput, match=says):
            measurement.at("smoke", {name: "1"})
    with pytest.raises(BadInput, match="did you mean 'single'"):
        measurement.at("singel")


def test_it_is_reported_from_its_files(tmp_path, capsys):
    out = tmp_path / "m"
    measure(Measurement(title="Title", measure=Counted(), claim="c"), out, about=ABOUT)
    (page,) = report([out])
    assert "Title" in page.read_text() and device_in_words(device()) in page.read_text()
    text = (out / "report" / "report.md").read_text()
    # 64² against 100 · 64: the crossover lies between 64 and 128 tokens.
    assert "| linear | 1.00 | 1.00 | 128 | never here |" in text and "| full | 2.00 | 1.00 |" in text
    for name in ("report.tex", "report.csv", "cost.png", "cost.svg"):
        assert (out / "report" / name).stat().st_size
    kept = tmp_path / "kept" / "m"
    assert cli.main(["report", str(out), "--keep", str(kept)]) == 0
    assert sorted(path.name for path in kept.iterdir()) == ["experiment.json", "measurements.jsonl", "report"]
    assert "cost.png" in text and not (kept / "report" / "cost.png").exists()
    assert cli.main(["report", str(kept.parent)]) == 0  # a folder of kept results, summed up
    summary = (kept.parent / "README.md").read_text()
    # 128², that is 16,384 ms, and 12,800 ms at 128 tokens; the fastest first.
    row = next(line for line in summary.splitlines() if line.startswith("| `m` | smoke, "))
    assert row.endswith("| steps/s at T = 128: linear 0.0781 (1.3×), full 0.061 (1×) | none published |")
    assert "## Title" in summary
    capsys.readouterr()
    assert cli.main(["report", "--json", str(out)]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines() if line.startswith("{")]
    assert [row["name"] for row in rows] == ["full", "linear"] * 2
    (out / "measurements.jsonl").unlink()
    with pytest.raises(BadInput, match="no measurement yet"):
        report([out])


@pytest.mark.parametrize("name", ["lra_efficiency", "performer_approximation"])
def test_the_verb_runs_it(name, tmp_path, capsys):
    """Two lengths of one of the experiments, as small as they go."""
    small = {
        "lra_efficiency": ["--measure.variants", "full,linear", "--measure.layers", "1"],
        "performer_approximation": ["--measure.length", "64", "--measure.features", "8"]
        + ["--measure.draws", "5", "--measure.spread", "0.5"],
    }[name]
    words = ["run", name, *small, "--measure.lengths", "64,128", "--out", str(tmp_path / "m")]
    assert cli.main(words) == 0
    text = (tmp_path / "m" / "report" / "report.md").read_text()
    wanted = {"lra_efficiency": "steps/s", "performer_approximation": "a standard deviation of 0.5."}[name]
    assert wanted in text and "Growth with T" in text


def test_bench_is_a_measurement_too(tmp_path, capsys):
    """What it writes is continued, kept and reported as an experiment's is."""
    out, kept = tmp_path / "b", tmp_path / "kept" / "b"
    words = "bench full linear --lengths 16,32 --heads 1 --head_size 4 --rounds 1".split()
    assert cli.main([*words, "--out", str(out)]) == 0
    assert cli.main([*words, "--out", str(out)]) == 0
    assert "T = 16: kept" in capsys.readouterr().out
    rows = [json.loads(line) for line in (out / "measurements.jsonl").read_text().splitlines()]
    assert len({(row["name"], row["length"]) for row in rows}) == len(rows)
    record = json.loads((out / "experiment.json").read_text())
    assert record["title"] == "Causal attention, batch 1, 1 heads of 4, float32"
    assert record["command"].startswith("transformer-jax bench full linear --lengths 16,32 ")
    assert cli.main(["report", str(out), "--keep", str(kept)]) == 0
    assert "faster than full from" in (kept / "report" / "report.md").read_text()
