"""The command line as a user meets it: what it refuses is one sentence on stderr and exit code 2."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from transformer_jax import cli
from transformer_jax.data.tasks.copy import Copy
from transformer_jax.errors import BadInput
from transformer_jax.experiment import Experiment, Variant
from transformer_jax.measure.bench import Bench
from transformer_jax.model.config import Transformer, mechanism
from transformer_jax.train.config import Train
from transformer_jax.train.run import Run, claim, load_run

ROOT = Path(__file__).parent.parent
BAD_FILE = "x = 1\n"


@pytest.fixture
def said(capsys, tmp_path, monkeypatch):
    """said(*words) -> (exit code, stdout, stderr), run in an empty directory."""
    monkeypatch.chdir(tmp_path)

    def call(*words):
        code = cli.main([str(word) for word in words])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


@pytest.mark.quick
@pytest.mark.parametrize(
    ("words", "hint"),
    [
        (["rnu", "quickstart"], "did you mean 'run'"),
        (["run"], "EXPERIMENT"),
        (["run", "quikstart"], "did you mean 'quickstart'"),
        (["run", "nothing.py"], "no experiment file"),
        (["run", "quickstart", "--scale", "smok"], "did you mean 'smoke'"),
        (["run", "quickstart", "--model.widht", "3"], "did you mean 'model.width'"),
        (["run", "quickstart", "--model.width", "wide"], "a whole number"),
        (["run", "quickstart", "--model.width"], "has no value"),
        (["run", "quickstart", "--model.width", "3", "--model.width=4"], "given twice"),
        (["run", "quickstart", "stray"], "one word too many"),
        (["run", "quickstart", "--task", "copy"], "set one of task.length"),
        (["run", "quickstart", "--linear.window", "3"], "linear has no options"),
        (["run", "quickstart", "--performer.features", "3"], "add performer to --variants"),
        (["run", "quickstart", "--variants", "full+"], "lacks a mechanism"),
        (["run", "quickstart", "--train.warmup", "900"], "or train longer"),
        (["bench", "efficient"], "--direction bidirectional"),
        (["list", "fulll"], "did you mean 'full'"),
        (["run", "quickstart", "--model.heads", "3"], "heads"),
        (["run", "quickstart", "--task.length", "63"], "odd"),
        (["run", "quickstart", "--variants", "fulll"], "did you mean 'full'"),
        (["run", "quickstart", "--variants", "linformer"], "not defined for causal"),
        (["run", "quickstart", "--train.mesh.fspd", "2"], "did you mean 'train.mesh.fsdp'"),
        (["run", "quickstart", "--train.mesh.tensor", "64"], "has 64 places for"),
        (["run", "lra_text", "--task.archive", "no.tar.gz"], "no archive"),
        (["report", "."], "holds no results"),
        (["report", "nowhere"], "holds no results"),
        (["report"], "DIR"),
        (["report", ".", "--jsno"], "does not know --jsno"),
        (["check", "fulll"], "did you mean 'full'"),
        (["check", "nothing.py"], "no file"),
        (["bench", "--lengts", "64"], "did you mean 'lengths'"),
        (["bench", "--lengths", "many"], "a whole number"),
        (["bench", "--variants", "fulll"], "did you mean 'full'"),
        (["generate"], "needs CHECKPOINT"),
        (["generate", "nowhere"], "nowhere"),
        (["generate", "nowhere", "--temprature", "2"], "did you mean 'temperature'"),
    ],
)
def test_bad_input_is_one_sentence_and_code_2(said, words, hint):
    code, out, err = said(*words)
    assert code == 2
    assert hint in err
    assert err.count("\n") == 1, err
    assert "Traceback" not in err
    assert not out
    assert not Path("runs").exists()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_an_unwritable_out_is_refused(said, tmp_path):
    (tmp_path / "locked").mkdir(mode=0o500)
    code, _, err = said("run", "quickstart", "--out", tmp_path / "locked" / "out")
    assert (code, err.count("\n")) == (2, 1)
    assert "locked" in err


def test_an_out_that_cannot_be_made_is_refused(said, tmp_path):
    (tmp_path / "file").write_text("")
    code, _, err = said("run", "quickstart", "--variants", "full", "--out", tmp_path / "file" / "out")
    assert (code, err.count("\n")) == (2, 1)


@pytest.mark.quick
@pytest.mark.parametrize(
    ("words", "found"),
    [
        (["--model.width", "128"], {"model.width": "128"}),
        (["--model.width=128", "train.steps=5"], {"model.width": "128", "train.steps": "5"}),
        (["--variants", "full", "linear", "--a-b", "c"], {"variants": "full,linear", "a_b": "c"}),
        (["--tune.learning_rate", "1e-3,1e-2"], {"tune.learning_rate": "1e-3,1e-2"}),
        (["variants=a,b"], {"variants": "a,b"}),
        (["--task.archive", "a=b.tar"], {"task.archive": "a=b.tar"}),
        (["--prompt", "x = 1"], {"prompt": "x = 1"}),
    ],
)
def test_free_settings(words, found):
    assert cli.settings(words) == found


@pytest.mark.quick
def test_stray_words_are_refused():
    with pytest.raises(BadInput, match="one word too many"):
        cli.settings(["128"])


@pytest.mark.quick
def test_list_prints_everything_and_json_lines(said):
    code, out, _ = said("list", "--json")
    rows = [json.loads(line) for line in out.splitlines()]
    assert code == 0
    names = {
        kind: [row["name"] for row in rows if row["kind"] == kind]
        for kind in ("variant", "task", "experiment")
    }
    assert {"full", "linear", "linformer"} <= set(names["variant"])
    assert {"associative_recall", "imdb"} <= set(names["task"])
    assert {"quickstart", "lra_text"} <= set(names["experiment"])
    linformer = next(row for row in rows if row["name"] == "linformer")
    assert "bidirectional" in linformer["defined for"]
    assert linformer["refused"]["causal"]


@pytest.mark.quick
def test_list_is_read_at_80_columns_and_list_name_says_all_of_one(said, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    code, out, _ = said("list")
    assert code == 0
    lines = out.splitlines()
    assert max(map(len, lines)) <= 80
    assert "linear recurrence" in lines
    assert not any(line.rstrip().endswith("…") for line in lines)
    (line,) = (line for line in lines if line.startswith("gated_delta_net "))
    assert "Gated DeltaNet: a memory that replaces" in line
    code, out, _ = said("list", "linformer")
    assert code == 0
    assert "arXiv:2006.04768" in out and "leak the future" in out and "--linformer.landmarks 64" in out
    assert "Equation 7: softmax(Q (E K)ᵀ" in out
    code, out, _ = said("list", "copy")
    assert code == 0 and "--task.symbols 10  (a whole number)" in out
    code, out, _ = said("list", "gated_delta_net", "--json")
    assert json.loads(out)["about"].startswith("Gated DeltaNet: a memory")


TINY = """
from transformer_jax.cli import run_file
from transformer_jax.data.tasks.associative_recall import AssociativeRecall
from transformer_jax.experiment import Experiment, Grid
from transformer_jax.model.config import Transformer
from transformer_jax.train.config import Train

experiment = Experiment(
    title="Tiny",
    task=AssociativeRecall(length=16, pairs=2, vocabulary=16, validation_examples=8, test_examples=8),
    model=Transformer(width=8, mlp="none"),
    variants=("full", "linear"),
    train=Train(steps=3, batch=4),
    tune=Grid(seeds=1),
)

if __name__ == "__main__":
    run_file(__file__)
"""


def test_run_then_continue_then_refuse_then_report(said, tmp_path):
    (tmp_path / "tiny.py").write_text(TINY)
    code, out, err = said("run", "tiny.py", "--train.steps", "2")
    assert code == 0, err
    assert "Tiny: variants 2, seeds 1, runs 2, into" in out
    # Settings given here have results of their own, so that they are in nobody's way.
    (results,) = (tmp_path / "runs").iterdir()
    assert results.name.startswith("tiny-smoke-") and (results / "report" / "report.html").is_file()
    code, out, _ = said("run", "tiny.py", "--train.steps", "2")
    assert code == 0
    assert out.count(", kept") == 2
    before = {p: p.read_bytes() for p in (tmp_path / "runs").rglob("*") if p.is_file()}
    code, _, err = said("run", "tiny.py", "--out", str(results))
    assert code == 2
    assert "train.steps is 2 there and 3 here" in err
    assert {p: p.read_bytes() for p in (tmp_path / "runs").rglob("*") if p.is_file()} == before
    code, out, _ = said("report", str(results), "--json")
    lines = [json.loads(line) for line in out.splitlines()]
    assert code == 0
    assert [line["label"] for line in lines] == ["full", "linear"]


MINE = """
from transformer_jax.attention.variants.linear import Linear

class Class_mine(Linear):
    "Linear attention under a name of its own."
    name, paper = "mine", "nowhere"
"""


@pytest.mark.quick
def test_settings_show_what_is_set(said):
    code, out, _ = said("run", "quickstart", "--settings", "--model.width", "32", "--train.clip", "none")
    lines = out.splitlines()
    assert code == 0 and not Path("runs").exists()
    assert "--model.width 32  (a whole number)" in lines
    assert "--train.clip none  (a number or none)" in lines
    assert "--sliding_window.window 16  (a whole number)" in lines
    # What is shown can be given: the same settings, said again, are the same.
    given = dict(line.partition("  (")[0].split(" ") for line in lines if line.startswith("--"))
    for name in ("learning_rate", "weight_decay", "width"):
        assert given.pop(f"--tune.{name}") == "''"  # none: the one of train or model
    again = said("run", "quickstart", "--settings", *(word for pair in given.items() for word in pair))
    assert again[0] == 0, again
    assert [line for line in again[1].splitlines() if line.startswith("--")] == [
        line for line in lines if line.startswith("--")
    ]
    code, out, _ = said("generate", "--settings")
    assert code == 0 and "--count 200  (a whole number)" in out and "tokens to write" in out


@pytest.mark.quick
def test_a_mechanism_of_a_users_file_is_named_by_it(said, tmp_path):
    """In experiments, in the benchmark, and where a record is read by one that has not seen the file."""
    (tmp_path / "mine.py").write_text(MINE)
    (tmp_path / "two.py").write_text(MINE.replace("mine", "first") + MINE.replace("mine", "second"))
    experiment = Experiment(
        title="Mine", task=Copy(length=16), variants=("full", "mine.py+full"), train=Train(steps=1, batch=1)
    )
    assert experiment.variants[1].mechanisms == ("mine", "full")
    chosen = experiment.override({"variants": "mine.py:mine,two.py,full"}).variants
    assert [variant.label for variant in chosen] == ["mine", "first", "second", "full"]
    with pytest.raises(BadInput, match="first, second: name one of them"):
        Variant("two.py+full")
    with pytest.raises(BadInput, match="did you mean 'mine'"):
        Bench(variants=("mine.py:min",))
    assert [m.name for m in Bench(variants=("mine.py", "full")).mechanisms] == ["mine", "full"]

    run = Run(
        task=experiment.task, model=Transformer(mixers=(mechanism("mine"),)), train=Train(steps=1, batch=1)
    )
    record = claim(run, tmp_path / "run")
    assert record["files"] == {"mine": str(tmp_path / "mine.py")}
    config = tmp_path / "run" / "config.json"
    config.write_text(config.read_text().replace("mine", "unseen"))
    with pytest.raises(BadInput, match="which is gone"):
        load_run(tmp_path / "run")
    (tmp_path / "unseen.py").write_text(MINE.replace("mine", "unseen"))
    assert load_run(tmp_path / "run").model.mixers == (mechanism("unseen"),)


def test_an_experiment_file_runs_itself_and_help_is_quick(tmp_path):
    (tmp_path / "tiny.py").write_text(TINY)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}

    def python(*words):
        return subprocess.run(
            [sys.executable, *words],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            timeout=120,
        )

    done = python("tiny.py", "--modle.width", "8")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
    assert "did you mean 'model.width'" in done.stderr
    # Help imports nothing heavy: that is why it is quick.
    script = "import sys; from transformer_jax import cli; cli.main(['--help'])"
    light = f"try:\n    exec({script!r})\nexcept SystemExit:\n    print('jax' in sys.modules)"
    done = python("-c", f"import sys\n{light}")
    assert done.stdout.rstrip().endswith("False"), done.stderr
