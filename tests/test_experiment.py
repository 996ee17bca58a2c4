from __future__ import annotations

import math
import re
from pathlib import Path

import jax
import pytest
from flax import nnx

from transformer_jax import experiment as ex
from transformer_jax.attention import catalogue
from transformer_jax.data.tasks.associative_recall import AssociativeRecall
from transformer_jax.errors import BadInput
from transformer_jax.experiment import Experiment, Grid, Override, Variant
from transformer_jax.model.config import Mechanism, Transformer
from transformer_jax.model.transformer import Model
from transformer_jax.train.config import Train

pytestmark = pytest.mark.quick

EXPERIMENTS = sorted(ex.available())
MEASUREMENTS = ["lra_efficiency", "performer_approximation", "planned_decoder", "planned_encoder"]


@pytest.fixture
def experiment():
    return Experiment(
        title="t",
        task=AssociativeRecall(length=32, pairs=2, vocabulary=32),
        model=Transformer(width=16, mlp="none"),
        variants=("full", Variant("full", "full, rotary", positions="rotary", width=32, steps=7), "linear"),
        train=Train(steps=10, batch=4),
        tune=Grid(seeds=2),
        scales={
            "single": Override(
                task={"length": 64}, train={"steps": 20}, tune={"learning_rate": (1e-3, 1e-2)}
            ),
            "paper": Override(variants=("linear",)),
        },
    )


def test_a_scale_changes_its_parts_only(experiment):
    single = experiment.at("single")
    assert (single.task.length, single.train.steps, single.tune.learning_rate) == (64, 20, (1e-3, 1e-2))
    assert (single.model, single.tune.seeds, single.train.batch) == (experiment.model, 2, 4)
    assert experiment.at("smoke") == experiment
    assert [v.label for v in experiment.at("paper").variants] == ["linear"]


def test_an_unknown_scale_is_refused(experiment):
    with pytest.raises(BadInput, match="did you mean 'single'"):
        experiment.at("singel")
    with pytest.raises(BadInput, match="scale 'huge'"):
        Experiment(
            title="t",
            task=experiment.task,
            variants=("full",),
            train=experiment.train,
            scales={"huge": Override()},
        )


def test_a_variant_finds_settings_by_name(experiment):
    model, train = experiment.variants[1].resolve(experiment.model, experiment.train)
    assert (model.positions, model.width, train.steps) == ("rotary", 32, 7)
    assert (model.mlp, train.batch) == ("none", 4)
    window = Variant("sliding_window", window=8).resolve(experiment.model, experiment.train)[0]
    assert window.mixers == (Mechanism("sliding_window", (("window", 8),)),)


def test_hybrids_are_patterns_over_the_layers(experiment):
    for variant in (Variant(("linear", "full")), Variant("linear+full")):
        model, _ = variant.resolve(experiment.model, experiment.train)
        assert [m.name for m in model.mixers] == ["linear", "full"]
        assert variant.label == "linear+full"
    three = Variant(("linear", "full", "full"))
    with pytest.raises(BadInput, match="multiple of the pattern"):
        three.resolve(experiment.model, experiment.train)


@pytest.mark.parametrize(
    ("variant", "says"),
    [
        (Variant("fulll"), "did you mean 'full'"),
        (Variant("full", widht=3), "did you mean 'width'"),
        (Variant("full", width="wide"), "wrong type"),
        (Variant("full", steps=2.5), "wrong type"),
        (Variant("full", mixers=()), "setting of variant 'full' 'mixers'"),
        (Variant("sliding_window", window="wide"), "a whole number"),
        (Variant("full", **{"modle.width": 3}), "did you mean 'model'"),
    ],
)
def test_bad_variants_are_refused(experiment, variant, says):
    with pytest.raises(BadInput, match=says):
        variant.resolve(experiment.model, experiment.train)


def test_a_name_that_is_two_things_must_be_told_apart(experiment, monkeypatch):
    real = catalogue.options
    monkeypatch.setattr(catalogue, "options", lambda mixer: {**real(mixer), "width": (int, 1)})
    with pytest.raises(BadInput, match=r"ambiguous: write 'linear.width' or 'model.width'"):
        Variant("linear", width=8).resolve(experiment.model, experiment.train)
    model, _ = Variant("linear", **{"model.width": 8}).resolve(experiment.model, experiment.train)
    assert model.width == 8


def test_labels_are_unique(experiment):
    with pytest.raises(BadInput, match="labelled 'full'"):
        Experiment(
            title="t", task=experiment.task, variants=("full", Variant("full")), train=experiment.train
        )


def test_the_command_line_goes_before_scale_and_variant(experiment):
    changed = experiment.at("single", {"train.steps": "99", "model.width": "48", "task.pairs": "4"})
    for variant in changed.variants:
        model, train = variant.resolve(changed.model, changed.train)
        assert (model.width, train.steps) == (48, 99)
    assert changed.variants[1].resolve(changed.model, changed.train)[0].positions == "rotary"
    assert changed.task.pairs == 4


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("model.widht", "3", "did you mean 'model.width'"),
        ("width", "3", "did you mean 'model.width'"),
        ("lenght", "3", "did you mean 'task.length'"),
        ("model.width", "wide", "a whole number"),
        ("model.mlp", "relu", "one of none, gelu, swiglu"),
        ("model.mixers", "full", "Unknown override"),
        ("tune.seeds", "0", "at least 1"),
        ("tune.learning_rate", "1e-3,1e-3", "different numbers"),
        ("tune.weight_decay", "0,-0.1", "of at least 0"),
        ("tune.width", "8,8", "different numbers"),
        ("tune.width", "8.5", "whole number"),
        ("match", "bytes", "one of parameters, state, flops or none"),
        ("match.within", "0", "above 0"),
        ("task.length", "33", "even"),
        ("variants", "full,fulll", "did you mean 'full'"),
        ("linear.window", "3", "linear has no options"),
    ],
)
def test_bad_overrides_are_refused(experiment, name, text, says):
    with pytest.raises(BadInput, match=says):
        experiment.at("smoke", {name: text})


def test_a_grid_of_rates_cannot_be_overridden_by_one_that_is_ignored(experiment):
    with pytest.raises(BadInput, match=r"set tune.learning_rate"):
        experiment.at("single", {"train.learning_rate": "1e-3"})
    assert experiment.at("smoke", {"train.learning_rate": "1e-2"}).train.learning_rate == 1e-2


def test_variants_can_be_chosen_by_label_by_slug_and_anew(experiment):
    def labels(text):
        return [v.label for v in experiment.at("smoke", {"variants": text}).variants]

    assert labels("linear,gated_delta_net+full") == ["linear", "gated_delta_net+full"]
    assert labels("full-rotary,linear") == ["full, rotary", "linear"]
    assert labels("full, rotary") == ["full, rotary"]


def test_an_option_of_a_mechanism_can_be_overridden(experiment):
    changes = {"variants": "sliding_window,full", "sliding_window.window": "8"}
    changed = experiment.at("smoke", changes)
    assert changed.variants[0].resolve(changed.model, changed.train)[0].mixers[0].options == (("window", 8),)
    assert changed.variants[1].settings == ()


def test_files_are_found_by_name_and_by_path(tmp_path):
    assert ex.find("quickstart").name == "quickstart.py"
    with pytest.raises(BadInput, match="did you mean 'quickstart'"):
        ex.find("quikstart")
    with pytest.raises(BadInput, match="no experiment file"):
        ex.find(str(tmp_path / "nothing.py"))
    (tmp_path / "empty.py").write_text("x = 1\n")
    with pytest.raises(BadInput, match="assigns no experiment"):
        ex.load(tmp_path / "empty.py")


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_published_number_has_a_citation(name):
    """A paper or a page, and the place in it; and the numbers are those of a score or a cost."""
    written, _ = ex.load(ex.available()[name])
    published = written.published
    tables = [published] if isinstance(published, ex.Table) else list((published or {}).values())
    for table in tables:
        assert re.search(r"arXiv:\d{4}\.\d{5}|https://|doi:10\.", table.source), table.source
        assert re.search(r"Table \d|Figure \d|in text|repository", table.source), table.source
        assert table.precision > 0 and table.rows and all(table.rows.values())
        assert all(math.isfinite(value) for row in table.rows.values() for value in row.values())
        assert set(table.comparable_at) <= set(ex.SCALES)


@pytest.mark.parametrize("name", EXPERIMENTS)
@pytest.mark.parametrize("scale", ex.SCALES)
def test_every_experiment_resolves_at_every_scale(name, scale):
    experiment, doc = ex.load(ex.available()[name])
    for word in ("smoke", "single", "paper", "Expect"):
        assert word in doc
    scaled = experiment.at(scale)
    assert isinstance(scaled, ex.Measurement) == (name in MEASUREMENTS)
    if name in MEASUREMENTS:
        assert scaled.measure.parts()
        return
    for variant in scaled.variants:
        variant.resolve(scaled.model, scaled.train)
    if scaled.published:
        assert set(scaled.published.notes) <= set(scaled.published.rows)
        assert set(scaled.published.rows) & {variant.label for variant in scaled.variants}
        values = [value for row in scaled.published.rows.values() for value in row.values()]
        assert all(value > 1 if scaled.task.metric == "perplexity" else 0 <= value <= 1 for value in values)


def test_the_language_models_of_the_papers_have_340_million_parameters():
    """Counted without making any."""
    paper = ex.load(ex.available()["language_model"])[0].at("paper")
    for variant in paper.variants:
        config, train = variant.resolve(paper.model, paper.train)
        sizes = {"vocabulary": paper.task.vocabulary, "outputs": paper.task.outputs, "length": 2048}
        build = lambda config=config, sizes=sizes: nnx.state(
            Model(config, target="token", causal=True, rngs=nnx.Rngs(0), **sizes), nnx.Param
        )
        count = sum(leaf.size for leaf in jax.tree.leaves(jax.eval_shape(build)))
        assert count == pytest.approx(340e6, rel=0.03), variant.label
    assert train.steps * train.batch * paper.task.length == pytest.approx(15e9, rel=1e-3)


@pytest.mark.parametrize(("name", "mode"), [("python_text", "causal"), ("lra_text", "bidirectional")])
def test_comparisons_have_mechanisms_of_every_family(name, mode):
    experiment, _ = ex.load(ex.available()[name])
    defined = {
        n: mixer.family
        for n, mixer in catalogue.catalogue().items()
        if mixer.capability.defined(mode) and mixer.__module__.startswith("transformer_jax.")
    }
    named = {variant.label for variant in experiment.variants}
    assert named <= set(defined) and {defined[n] for n in named} == set(defined.values())


def test_an_experiment_may_import_what_lies_beside_it(tmp_path):
    (tmp_path / "lies_beside.py").write_text("TITLE = 'from beside'\n")
    source = Path(ex.available()["quickstart"]).read_text()
    file = tmp_path / "with_import.py"
    file.write_text(source.replace("experiment = ", "import lies_beside\nexperiment = ", 1))
    assert ex.load(file)[0].task.name == "associative_recall"


@pytest.mark.parametrize(
    ("source", "says"),
    [
        (
            "import nosuchmodule\n",
            "line 1 cannot be run .ModuleNotFoundError: No module named 'nosuch",
        ),
        ("x = 1\ny = x / 0\n", "line 2 cannot be run .ZeroDivisionError"),
        ("def f(:\n", "cannot be run .SyntaxError"),
    ],
)
def test_a_file_that_cannot_be_run_is_named(tmp_path, source, says):
    file = tmp_path / "broken.py"
    file.write_text(source)
    for load in (ex.load, catalogue.load):
        with pytest.raises(BadInput, match=f"broken.py.*{says}"):
            load(file)
