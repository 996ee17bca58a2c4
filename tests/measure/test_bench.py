"""The benchmark measures what it says, beside references that are what they say."""

from __future__ import annotations

import importlib.util
import json
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from rich.console import Console

from transformer_jax.attention import catalogue
from transformer_jax.attention.contract import Layout
from transformer_jax.errors import BadInput
from transformer_jax.measure import programs
from transformer_jax.measure.bench import BYTES, Bench, bench, render
from transformer_jax.measure.timing import interleaved
from transformer_jax.model.config import Transformer, mechanism
from transformer_jax.model.transformer import Model

needs_torch = pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="PyTorch is not installed")
SMALL = {"batch": 2, "heads": 2, "head_size": 8, "rounds": 1}


@pytest.mark.quick
def test_attention_is_measured_beside_the_references():
    config = Bench(variants=("full", mechanism("sliding_window", window=16)), lengths=(64, 128), **SMALL)
    rows = bench(config)
    measured = [row for row in rows if row["kind"] == "measurement"]
    expected = [
        "jax.nn",
        *(["torch"] if programs.torch_device() else []),
        "full",
        "sliding_window(window=16)",
    ]
    assert [row["name"] for row in measured] == expected * 2
    for row in measured:
        assert row["forward_ms"] > 0 and row["forward_backward_ms"] > 0
        assert row["ratios"]["time/jax.nn"] > 0
        assert ("time/torch" in row["ratios"]) == ("torch" in expected)
    by_name = {row["name"]: row for row in rows if row["kind"] == "slope"}
    # jax.nn keeps T² scores: twice the length, four times the memory.
    assert by_name["jax.nn"]["temporaries"] == pytest.approx(2, abs=0.3)
    assert [json.loads(json.dumps(row)) for row in rows] == rows
    console = Console(width=200, record=True, file=open("/dev/null", "w"))
    console.print(render(rows))
    text = console.export_text()
    assert "sliding_window(window=16)" in text and "time/jax.nn" in text and "exponents in T" in text


def test_training_steps_are_measured_beside_the_same_model_in_torch():
    config = Bench(what="model", variants=("full", "linear"), lengths=(64,), layers=1, **SMALL)
    rows = bench(config)
    assert [row["name"] for row in rows] == [
        *(["torch"] if programs.torch_device() else []),
        "full",
        "linear",
    ]
    assert all(row["step_ms"] > 0 for row in rows)
    assert all(row["step_temporaries"] > 0 for row in rows if row["name"] != "torch")


@pytest.mark.parametrize("name", ["full", "linear"])
def test_a_decoding_step_goes_on_where_the_prompt_ended(name):
    """Its first token is what the whole sequence has there."""
    geometry, x = Bench(**SMALL).geometry(16), []
    program = programs.decode_step(mechanism(name), geometry, batch=2, position=5)
    y = program.run["step"]()
    mixer = catalogue.build(name, geometry, rngs=nnx.Rngs(0))
    for length in (5, 1):
        x.append(jax.random.normal(jax.random.key(1), (2, length, geometry.width)))
    whole, _ = mixer(jnp.concatenate(x, axis=1), Layout.plain(2, 6))
    np.testing.assert_allclose(y[:, 0], whole[:, 5], rtol=1e-4, atol=1e-5)
    rows = bench(Bench(what="decode", variants=(name,), lengths=(8, 16), **SMALL))
    assert [row["name"] for row in rows] == [name] * 3 and all(row["step_ms"] > 0 for row in rows[:2])


def test_the_gradient_is_that_of_streams_and_of_own_parameters_only():
    geometry = Bench(direction="bidirectional", **SMALL).geometry(32)
    passes = {}

    def spy(name, part, given):
        passes[name] = given
        return None

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(programs, "jax_program", spy)
        for name in ("full", "linformer"):
            programs.variant_core(mechanism(name), geometry, batch=2)
    streams = {"q": (2, 32, 2, 8), "k": (2, 32, 2, 8), "v": (2, 32, 2, 8)}
    for name, own in (("full", 0), ("linformer", 1)):
        forward, (inputs,) = passes[name]["forward"]
        mine, given = inputs
        assert {key: given[key].shape for key in streams} == streams
        # Linformer learns to compress time inside its core; projections of the width are nobody's core.
        assert (sum(leaf is not None for leaf in mine) > 0) == bool(own), name
        assert forward(inputs).shape == (2, 32, 2, 8)
        both, arguments = passes[name]["forward_backward"]
        _, gradient = both(*arguments)
        assert all(jnp.any(leaf != 0) for leaf in jax.tree.leaves(gradient))


def test_a_program_that_does_not_fit_is_named_and_not_run(monkeypatch):
    monkeypatch.setattr(programs, "memory", lambda: 2**16)
    rows = bench(Bench(variants=("linear",), lengths=(256,), **SMALL))
    reference = next(row for row in rows if row["name"] == "jax.nn")
    assert reference["skipped"].startswith("needs") and reference["forward_ms"] is None
    assert reference["forward_backward_temporaries"] > 2**16


@needs_torch
def test_the_model_in_torch_is_the_same_function():
    import torch

    from transformer_jax.measure.torch_model import Decoder

    config = Transformer(layers=2, width=32, heads=2)
    sizes = {"vocabulary": BYTES, "length": 16}
    ours = Model(config, outputs=BYTES, target="token", causal=True, rngs=nnx.Rngs(0), **sizes)
    theirs = Decoder(layers=2, width=32, heads=2, **sizes)
    learned = {
        ".".join(map(str, path)): np.asarray(leaf)
        for path, leaf in nnx.to_flat_state(nnx.state(ours, nnx.Param))
    }
    assert sum(p.numel() for p in theirs.parameters()) == ours.parameters()

    def value(name: str) -> np.ndarray:
        """The array of ours that PyTorch calls `name`; its linear layers are stored transposed."""
        if name.startswith("blocks."):
            _, layer, rest = name.split(".", 2)
            rest = rest.replace("up.", "mlp.up.").replace("down.", "mlp.down.")
            for kind in ("scale", "kernel", "bias") if rest.endswith("weight") else ("bias",):
                key = f"periods.blocks.0.{rest.rsplit('.', 1)[0]}.{kind}"
                if key in learned:
                    return learned[key][int(layer)].T
        kind = {"embed.weight": "embed.embedding", "position.weight": "position.embedding"}
        return learned[kind.get(name, name.replace("weight", "scale"))]

    theirs.load_state_dict({name: torch.tensor(value(name)) for name in theirs.state_dict()})
    tokens = np.random.default_rng(0).integers(0, BYTES, (3, 16))
    logits, _ = ours(jnp.asarray(tokens))
    np.testing.assert_allclose(logits, theirs(torch.tensor(tokens)).detach(), atol=2e-5)


def test_medians_follow_the_work():
    seconds = interleaved({"short": lambda: None, "long": lambda: time.sleep(0.03)}, rounds=3)
    assert seconds["long"] >= 0.03 > seconds["short"]


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"variants": ("ful",)}, "did you mean 'full'"),
        ({"lengths": ()}, "lengths"),
        ({"rounds": 0}, "rounds"),
        ({"dtype": "float16"}, "bench.dtype"),
        ({"heads": 3, "kv_heads": 2}, "kv_heads"),
        ({"what": "decode", "direction": "bidirectional"}, "causal"),
    ],
)
def test_bad_input_is_one_sentence(wrong, sentence):
    with pytest.raises(BadInput, match=sentence):
        Bench(**wrong)


def test_an_undefined_direction_is_refused():
    with pytest.raises(BadInput, match="linformer"):
        bench(Bench(variants=("linformer",), lengths=(64,), **SMALL))
