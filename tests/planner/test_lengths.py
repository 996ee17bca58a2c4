"""One decoder at many lengths: as many tokens at each, and a table that finds the crossover."""

from __future__ import annotations

from pathlib import Path

import pytest

from transformer_jax import experiment
from transformer_jax.errors import BadInput
from transformer_jax.measurement import measure
from transformer_jax.planner import lengths, topologies
from transformer_jax.planner.lengths import Lengths, table
from transformer_jax.planner.plan import Memory, Plan
from transformer_jax.planner.search import Asked
from transformer_jax.report.write import report
from transformer_jax.train.run import build_model
from transformer_jax.train.step import outline

pytestmark = pytest.mark.quick

written = experiment.load(experiment.find("planned_decoder"))[0]


@pytest.mark.parametrize(
    ("length", "batch", "fsdp", "sequence"), [(2048, 256, 16, 1), (131_072, 4, 4, 4), (524_288, 1, 1, 16)]
)
def test_every_length_has_as_many_tokens_and_uses_every_chip(length, batch, fsdp, sequence):
    config = written.measure
    run = config.run(config.variants[0], length, 16)
    mesh = run.train.mesh
    assert (run.train.batch, mesh.fsdp, mesh.sequence) == (batch, fsdp, sequence)
    assert run.train.batch * run.task.length == config.tokens


def test_the_decoders_have_about_350_million_parameters():
    import jax

    config = written.measure
    for mixer in config.variants:
        run = config.run(mixer, 2048, 16)
        mesh = jax.sharding.Mesh([[[jax.devices()[:1]]]], ("data", "fsdp", "tensor", "sequence"))
        params = outline(build_model, run, mesh)[1].params
        assert sum(x.size for x in params.values()) == pytest.approx(350e6, rel=0.1)


def test_the_encoder_is_the_same_model_without_an_order_of_tokens():
    encoder = experiment.load(experiment.find("planned_encoder"))[0].measure
    run = encoder.run(encoder.variants[1], 2048, 16)
    assert run.model.mixers[0].name == "nystrom" and not run.task.causal
    assert encoder.model == written.measure.model


def test_lengths_that_do_not_divide_the_tokens_are_refused():
    with pytest.raises(BadInput, match="whole number of sequences of 3000"):
        Lengths(lengths=(2048, 3000))


SECONDS = {"full": {2048: 1.0, 131_072: 9.0}, "gated_delta_net": {2048: 2.0, 131_072: 2.0}}


@pytest.fixture
def planned(monkeypatch):
    """Plans of invented times; the window fits nowhere."""
    monkeypatch.setattr(topologies, "prepare", lambda: None)

    def made(asked):
        seconds = SECONDS.get(asked.label, {}).get(asked.run.task.length)
        return Plan(
            variant=asked.label,
            topology=asked.topology,
            chips=16,
            remat="full",
            mesh={"fsdp": 16},
            tokens=2**19,
            memory=Memory(arguments=2**30, temporaries=2**31),
            limit=2**34 if seconds else 2**30,
            fits=seconds is not None,
            seconds=seconds,
        )

    monkeypatch.setattr(Asked, "planned", made)


def test_they_are_measured_reported_and_put_into_one_table(planned, tmp_path, capsys):
    for topology in ("v5e:4x4", "v6e:4x4"):
        out = tmp_path / topology[:3]
        rows = measure(
            written.at("smoke", {"measure.topology": topology}),
            out,
            about={"name": "planned_decoder", "scale": "smoke", "doc": "", "command": ""},
            say=lambda line: None,
        )
        assert len(rows) == 6
    capsys.readouterr()
    lengths.main([str(tmp_path / "v5e"), str(tmp_path / "v6e")])
    found = capsys.readouterr().out.splitlines()
    assert found.pop(0) == "`planned_decoder`:" and found.pop(0) == ""
    assert found[0] == "| slice | mechanism | 2k | 128k | faster than full from |"
    assert found[2] == "| v5e:4x4 | `full` | 1,000 ms, 3.0 GiB | 9,000 ms, 3.0 GiB | – |"
    assert "does not fit, 3.0 GiB" in found[3] and found[3].endswith("| never here |")
    assert found[4].endswith("| 2,000 ms, 3.0 GiB | 2,000 ms, 3.0 GiB | 128k |")
    assert found[5].startswith("| v6e:4x4 |")
    report([tmp_path / "v5e"])
    assert "131072" in (tmp_path / "v5e" / "report" / "report.md").read_text()


def test_where_only_full_attention_does_not_fit_the_other_is_faster():
    row = lambda name, length, ms: {
        "name": name,
        "length": length,
        "step_ms": ms,
        "plan": {"topology": "v5e:4x4", "needed": 2**30},
    }
    rows = [row("full", 2048, 1.0), row("full", 8192, None), row("other", 2048, 2.0), row("other", 8192, 3.0)]
    assert table(rows).splitlines()[-1].endswith("| 8k |")


def test_the_readme_has_the_table_of_the_kept_plans(capsys):
    root = Path(__file__).resolve().parents[2]
    kept = sorted((root / "experiments" / "results").glob("planned_*"))
    lengths.main([str(folder) for folder in kept])
    assert capsys.readouterr().out in (root / "README.md").read_text()
