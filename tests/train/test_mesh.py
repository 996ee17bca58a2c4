"""A mesh changes where a run is computed and what a device holds, not what comes out."""

from __future__ import annotations

import numpy as np
import pytest

from tests.train import on_meshes
from tests.train.on_meshes import run_of
from transformer_jax.model.config import mechanism
from transformer_jax.parallel.mesh import Axes
from transformer_jax.train.run import digest

ONE = Axes(data=1)
MIXED = Axes(data=2, fsdp=2, tensor=2)
LONG = Axes(data=2, sequence=4)
ALL = Axes(data=1, fsdp=2, tensor=2, sequence=2)
# Adam divides a gradient by its own size, so that one of nothing but rounding moves as far as any.
SGD = {"optimizer": "sgd", "learning_rate": 0.1}


def agrees(found, wanted):
    """To 1e-5, gradients to 1e-4."""
    for part, arrays in wanted.items():
        for name, exact in arrays.items():
            error = np.linalg.norm(found[part][name] - exact) / max(np.linalg.norm(exact), 1e-12)
            assert error <= (1e-4 if part == "gradient" else 1e-5), f"{part} {name}: {error:.1e}"


def test_cut_along_three_axes_a_run_trains_as_on_one_device(on_eight_devices):
    """With accumulation, rematerialization and dropout."""
    model = {"remat": "dots", "dropout": 0.1, "mlp": "swiglu", "embeddings": "untied"}
    train = SGD | {"accumulate": 2}
    one, many = (on_eight_devices(on_meshes.trained, run_of(axes, train, **model)) for axes in (ONE, MIXED))
    agrees(many, one)


@pytest.mark.slow
@pytest.mark.parametrize("axes", [LONG, ALL], ids=str)
def test_with_each_sequence_cut_a_run_trains_as_on_one_device(on_eight_devices, axes):
    """A ring in one layer and a recurrence in the next, with accumulation, rematerialization and dropout."""
    model = {"remat": "dots", "dropout": 0.1, "mixers": (mechanism("full"), mechanism("linear"))}
    train = SGD | {"accumulate": 2}
    one, many = (on_eight_devices(on_meshes.trained, run_of(a, train, **model)) for a in (ONE, axes))
    agrees(many, one)


@pytest.mark.slow
@pytest.mark.parametrize(
    "axes", [Axes(data=8), Axes(data=2, fsdp=4), Axes(data=1, fsdp=2, tensor=4)], ids=str
)
@pytest.mark.parametrize("remat", ["none", "full", "projections"])
def test_other_meshes_train_as_one_device(on_eight_devices, axes, remat):
    one, many = (
        on_eight_devices(on_meshes.trained, run_of(a, SGD, remat=remat), slopes=True) for a in (ONE, axes)
    )
    agrees(many, one)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["gated_delta_net", "mamba", "performer", "gru", "window_and_linear"])
def test_other_mechanisms_train_as_on_one_device(on_eight_devices, name):
    """At a tenth of the rate: at 0.1 the gradient of gated_delta_net doubles after a step, and training
    itself makes 1e-5 of rounding, on one device too when the rows of a batch change places."""
    calm = SGD | {"learning_rate": 0.01}
    one, many = (
        on_eight_devices(on_meshes.trained, run_of(a, calm, mixers=(mechanism(name),)), slopes=True)
        for a in (ONE, MIXED)
    )
    agrees(many, one)


@pytest.mark.slow
@pytest.mark.parametrize("axes", [MIXED, LONG], ids=str)
def test_bfloat16_on_a_mesh_is_as_good_as_on_one_device(on_eight_devices, axes):
    """Both against float32: sums in another order round otherwise, not more."""
    exact = on_eight_devices(on_meshes.trained, run_of(ONE))
    one, many = (on_eight_devices(on_meshes.trained, run_of(a, compute="bfloat16")) for a in (ONE, axes))
    for name in ("loss", "gradient_norm"):
        right = exact["sums"][name]
        errors = [np.linalg.norm(found["sums"][name] - right) for found in (one, many)]
        assert errors[1] <= 2 * errors[0] + 1e-3 * np.linalg.norm(right), f"{name}: {errors}"


def test_a_device_makes_holds_and_exchanges_its_part(on_eight_devices):
    fsdp, tensor = (
        on_eight_devices(on_meshes.inspected, axes) for axes in (Axes(data=1, fsdp=8), Axes(data=1, tensor=4))
    )
    # Vectors are held whole, a hundredth of this model.
    assert fsdp.held < 1.2 * fsdp.total / 8, fsdp
    assert fsdp.given < 1.2 * fsdp.total / 8, fsdp
    # Of the largest matrix no device ever makes more than its part; of the optimizer's state neither.
    assert fsdp.largest <= fsdp.matrix / 8, fsdp
    # fsdp gathers the matrices of one layer at a time: projections, MLP, positions, tokens.
    shapes = {shape for kind, shape in fsdp.exchanged if kind == "all-gather"}
    assert shapes == {"64,64", "64,256", "256,64", "16,64", "8,64"}, fsdp
    # Nothing is recomputed here, but what was gathered is gathered again: no device keeps that of all layers.
    assert not {"2,64,64", "2,64,256", "2,256,64"} & fsdp.made, fsdp
    assert {kind for kind, _ in fsdp.exchanged} <= {"all-gather", "all-reduce", "reduce-scatter"}, fsdp
    # tensor sums what its heads, channels and words make of each token, and gathers nothing.
    assert {kind for kind, _ in tensor.exchanged} == {"all-reduce"}, tensor
    assert {shape for _, shape in tensor.exchanged} == {"16,16,64", "16,16", "16,16,1", ""}, tensor


def test_attention_in_parts_stays_where_its_sequences_and_heads_are(on_eight_devices):
    assert on_eight_devices(on_meshes.exchanged_in_parts, MIXED) == []


@pytest.mark.parametrize(
    "meshes, toy",
    [
        ((Axes(data=2, fsdp=4), Axes(data=8)), True),
        pytest.param((Axes(data=2, fsdp=4), Axes(data=1, fsdp=2, tensor=4)), False, marks=pytest.mark.slow),
        pytest.param((LONG, ALL), False, marks=pytest.mark.slow),
    ],
    ids=["toy", "transformer", "transformer with its sequences cut"],
)
def test_a_run_goes_on_on_another_mesh(on_eight_devices, tmp_path, meshes, toy):
    whole, resumed = on_eight_devices(on_meshes.continued, tmp_path / "run", *meshes, toy=toy)
    assert len(whole) == len(resumed) == 6 and resumed[:3] == whole[:3]
    np.testing.assert_allclose(resumed, whole, rtol=1e-5)


def test_the_mesh_is_no_part_of_what_a_run_is():
    assert digest(run_of(ONE)) == digest(run_of(Axes(fsdp=2, tensor=2)))


@pytest.mark.parametrize(
    "axes, train, model, says",
    [
        (
            Axes(fsdp=3),
            {},
            {},
            "A mesh of data 2 × fsdp 3 × tensor 1 × sequence 1 has 6 places for 8 device(s)",
        ),
        (Axes(tensor=4), {}, {"heads": 2}, "model.heads 2 does not divide over the mesh's tensor 4"),
        (Axes(tensor=4), {}, {"kv_heads": 2}, "model.kv_heads 2 does not divide over the mesh's tensor 4"),
        (Axes(tensor=4), {}, {"mlp_ratio": 0.5625}, "The hidden size of model.mlp, 18 does not divide"),
        (
            Axes(data=2, fsdp=4),
            {"batch": 12},
            {},
            "train.batch 12 does not divide over the mesh's data 2 × fsdp 4",
        ),
        (
            Axes(),
            {"evaluation_batch": 4},
            {},
            "train.evaluation_batch 4 does not divide over the mesh's data 8",
        ),
        (Axes(), {"batch": 24, "accumulate": 2}, {}, "train.batch / train.accumulate = 12 does not divide"),
        (Axes(tensor=4, sequence=2), {}, {}, "accepted"),
    ],
)
def test_a_run_that_does_not_fit_its_mesh_is_refused(on_eight_devices, axes, train, model, says):
    assert says in on_eight_devices(on_meshes.refusal, axes, train, model)


def test_a_sequence_that_does_not_divide_is_refused(on_eight_devices):
    said = on_eight_devices(on_meshes.of_length, Axes(sequence=8), 20)
    assert said.startswith("The length of copy, 20 does not divide over the mesh's sequence 8"), said


ALONE = """
from transformer_jax.attention.contract import Capability
from transformer_jax.attention.variants.full import Full


class Alone(Full):
    \"\"\"Full attention that no axis cuts in time.\"\"\"

    name = "alone"
    capability = Capability(sequence="refused")
"""


@pytest.mark.parametrize(
    "words, says",
    [
        ("--train.mesh.fsdp 3", "has 6 places for 8 device(s): choose axes whose product is the number"),
        ("--train.mesh.tensor 8 --model.heads 4", "model.heads 4 does not divide over the mesh's tensor 8"),
        ("--train.mesh.sequence 8 --task.length 68", ", 68 does not divide over the mesh's sequence 8"),
        ("--train.mesh.sequence 2 --variants alone.py", "Variant 'alone': alone does not spread a sequence"),
    ],
)
def test_the_command_line_refuses_a_mesh_before_anything_runs(on_eight_devices, tmp_path, words, says):
    """One sentence and exit code 2; the last one is found only when the model is traced on its mesh."""
    (tmp_path / "alone.py").write_text(ALONE)
    words = words.replace("alone.py", str(tmp_path / "alone.py")).split()
    places = ["--out", str(tmp_path / "out"), "--data", str(tmp_path / "data")]
    small = ["--task.validation_examples", "8", "--task.test_examples", "8"]
    code, said = on_eight_devices(on_meshes.commanded, "run", "quickstart", *places, *small, *words)
    assert code == 2 and says in said and said.count("\n") == 1, said
    assert not (tmp_path / "out").exists()
