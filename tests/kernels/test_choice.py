"""Which execution a program takes, who decides, and who is told."""

from __future__ import annotations

from dataclasses import replace

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from transformer_jax.attention.catalogue import build
from transformer_jax.attention.contract import Geometry, Layout
from transformer_jax.data.tasks.copy import Copy
from transformer_jax.errors import BadInput
from transformer_jax.kernels import choice
from transformer_jax.kernels.choice import Kernel, choose, executing, recording
from transformer_jax.model.config import Transformer, mechanism
from transformer_jax.parallel.mesh import Axes, make_mesh, on, platform
from transformer_jax.train.config import Train
from transformer_jax.train.loop import train
from transformer_jax.train.progress import Silent
from transformer_jax.train.run import Run, digest

pytestmark = pytest.mark.quick

TPU, GPU = Kernel("splash", "tpu"), Kernel("cudnn", "gpu", interpretable=False)
UNABLE = Kernel("splash", "tpu", "it has a bias")


def taken(monkeypatch, asked, where, *kernels):
    monkeypatch.setattr(choice, "platform", lambda: where)
    with executing("full", asked), recording() as heard:
        chosen = choose(kernels)
    [said] = heard["full"]
    return chosen, said


def test_the_platform_and_the_call_decide_unless_the_user_does(monkeypatch):
    go = lambda *args: taken(monkeypatch, *args)
    assert go("auto", "tpu", TPU, GPU) == (("splash", False), "splash")
    assert go("auto", "gpu", TPU, GPU) == (("cudnn", False), "cudnn")
    assert go("auto", "cpu", TPU, GPU) == (None, "xla (no kernel for cpu)")
    assert go("auto", "tpu", UNABLE, GPU) == (None, "xla (it has a bias)")
    assert go("xla", "tpu", TPU, GPU) == (None, "xla (asked for)")
    assert go("kernel", "tpu", TPU, GPU) == (("splash", False), "splash")
    assert go("interpret", "cpu", GPU, TPU) == (("splash", True), "splash (interpreted)")


@pytest.mark.parametrize(
    "asked, where, kernels, why",
    [
        ("kernel", "cpu", (TPU, GPU), "no kernel for cpu"),
        ("kernel", "tpu", (UNABLE, GPU), "it has a bias"),
        ("interpret", "cpu", (GPU,), "no kernel for cpu"),
    ],
)
def test_a_kernel_that_cannot_honour_the_call_refuses_it(monkeypatch, asked, where, kernels, why):
    with pytest.raises(BadInput, match=f"execution={asked} .* full runs on none: {why}"):
        taken(monkeypatch, asked, where, *kernels)


def test_the_platform_is_that_of_the_mesh_and_stays_inside_of_a_shard():
    assert platform() == jax.default_backend()
    mesh = make_mesh(Axes(), jax.devices()[:1])
    with on(mesh), on(None):
        assert platform() == mesh.devices.flat[0].platform


REFUSED = [
    ("alibi", {}, "more to a score"),
    ("forgetting", {}, "more to a score"),
    ("sink", {}, "denominator"),
    ("strided", {}, "in several parts"),
    ("full", {"execution": "naive"}, "in memory"),
]


@pytest.mark.parametrize("name, options, why", REFUSED)
def test_what_no_kernel_can_honour_is_said(name, options, why):
    def traced(execution):
        geometry = Geometry(width=16, heads=2, length=32, execution=execution)
        x = jax.ShapeDtypeStruct((1, 32, 16), jnp.float32)
        with recording() as heard:
            mixer = lambda x: build(name, geometry, rngs=nnx.Rngs(0), **options)(x, Layout.plain(1, 32))
            jax.eval_shape(mixer, x)
        return heard

    assert traced("xla") == {name: {"xla (asked for)"}}
    with pytest.raises(BadInput, match=why):
        traced("interpret")


def test_a_run_says_what_it_took_and_may_go_on_with_another(tmp_path):
    run = Run(
        task=Copy(length=16, symbols=5, validation_examples=4, test_examples=4),
        model=Transformer(mixers=(mechanism("full"), mechanism("min_gru")), width=16, heads=2),
        train=Train(steps=1, batch=2),
    )
    result = train(run, tmp_path / "run", data=tmp_path / "data", progress=Silent())
    assert result["executions"] == {"full": "xla (no kernel for cpu)"}
    other = replace(run, model=replace(run.model, execution="xla"))
    assert digest(other) == digest(run)
    with pytest.raises(BadInput, match="execution"):
        replace(run.model, execution="fast")
