"""The kernels through a TPU's real compiler, on a machine without one."""

from __future__ import annotations

import math
import os
import re
from dataclasses import replace
from importlib.util import find_spec

import jax
import jax.numpy as jnp
import pytest
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec

from transformer_jax.attention.catalogue import build
from transformer_jax.attention.contract import Geometry, Layout
from transformer_jax.kernels import bundles, delta, recurrence
from transformer_jax.kernels.choice import executing, recording
from transformer_jax.parallel.mesh import BATCH, Axes, make_mesh, on

pytestmark = [
    pytest.mark.slow,
    pytest.mark.usefixtures("for_users"),
    pytest.mark.skipif(find_spec("libtpu") is None, reason='no libtpu: install ".[tpu]" to compile for TPUs'),
]

MEGACORE = {"chip_config_name": "megacore", "chips_per_host_bounds": (2, 2, 1)}
CHIPS = {"v5e": ("v5e:2x4", {}), "v5p": ("v5:2x2x2", MEGACORE), "v6e": ("v6e:2x4", {})}


def devices(chip: str) -> list:
    from jax.experimental import topologies

    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    name, options = CHIPS[chip]
    return list(topologies.get_topology_desc(platform="tpu", topology_name=name, **options).devices)


def compiled(
    chip: str,
    name: str,
    length: int,
    axes: Axes | None = None,
    parts: int = 1,
    *,
    dtype: str = "bfloat16",
    head_size: int = 128,
    causal: bool = True,
    padded: bool = False,
    **options,
):
    """The core of a mechanism, forward and backward in its streams, for that chip; and what it ran on."""
    mesh = make_mesh(axes or Axes(), devices(chip)[:parts])
    sizes = {"width": 4 * head_size, "heads": 4, "kv_heads": 2, "head_size": head_size}
    geometry = Geometry(**sizes, length=length, dtype=dtype, causal=causal)
    mixer, layout = build(name, geometry, rngs=nnx.Rngs(0), **options), Layout.plain(2, length)
    if padded:
        layout = replace(layout, lengths=jnp.array([length, length // 2]))
    x = jax.ShapeDtypeStruct((2, length, 4 * head_size), jnp.dtype(dtype))
    streams = jax.eval_shape(lambda x: mixer.streams(x, layout)[0], x)

    def total(streams):
        with executing(name, "auto"):
            return jnp.sum(mixer.core(streams, layout, None)[0].astype(jnp.float32) ** 2)

    def both(streams):
        with on(mesh):
            return jax.value_and_grad(total)(streams)

    where = jax.tree.map(lambda s: NamedSharding(mesh, PartitionSpec(BATCH, "sequence", "tensor")), streams)
    with recording() as heard:
        lowered = jax.jit(both, in_shardings=(where,)).lower(streams)
    [said] = heard[name]
    return lowered.compile(), said


def largest_square(text: str, length: int) -> list[str]:
    """The arrays of a program with two axes as long as the sequence."""
    return [shape for shape in re.findall(r"\[([\d,]+)\]", text) if shape.split(",").count(str(length)) > 1]


@pytest.mark.parametrize("chip", CHIPS)
@pytest.mark.parametrize("name, options", [("full", {}), ("sliding_window", {"window": 1024})])
def test_full_and_windowed_attention_run_on_splash_without_an_array_of_all_pairs(chip, name, options):
    length = 8192
    program, said = compiled(chip, name, length, **options)
    assert said == "splash"
    assert program.as_text().count('custom_call_target="tpu_custom_call"') == 3, "forward, dq, dk and dv"
    assert not largest_square(program.as_text(), length)
    one_head = length * length * 2
    assert program.memory_analysis().temp_size_in_bytes < one_head


def test_block_sparse_attention_runs_on_splash():
    length, block = 4096, 128
    blocks = tuple(tuple(sorted({0, row // 2, row})) for row in range(length // block))
    program, said = compiled("v5e", "block_sparse", length, block=block, blocks=blocks)
    assert said == "splash" and not largest_square(program.as_text(), length)


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize(
    "name, few", [("nystrom", "landmarks"), ("linformer", "landmarks"), ("latent", "latents")]
)
def test_landmarks_run_on_splash_without_an_array_of_all_pairs(name, few, padded):
    length, count = 4096, 512
    program, said = compiled("v5e", name, length, causal=False, padded=padded, **{few: count})
    assert said == "splash"
    shapes = re.findall(r"\[([\d,]+)\]", program.as_text())
    sizes = [math.prod(map(int, shape.split(","))) for shape in shapes]
    stream = 2 * length * 4 * 128
    assert max(sizes) < 1.5 * stream, "of one row of the batch all pairs are two streams"


def test_on_a_mesh_each_device_has_its_rows_and_heads():
    program, said = compiled("v5e", "full", 2048, Axes(data=2, tensor=2), 4)
    assert said == "splash"
    calls = [line for line in program.as_text().splitlines() if "tpu_custom_call" in line]
    assert len(calls) == 3 and all("bf16[2,2048,128]" in line for line in calls), "of 4 heads each has 2"
    assert "all-gather" not in program.as_text(), "nothing is brought to a device that it does not need"


@pytest.mark.parametrize("chip", CHIPS)
@pytest.mark.parametrize("name, options", [("full", {}), ("sliding_window", {"window": 1024})])
def test_on_a_cut_sequence_splash_meets_one_shard_of_keys_at_a_time(chip, name, options):
    """A ring, and a halo: of sequences twice as long each of twice as many devices holds no more."""
    own, needed = 4096, {}
    for parts in (4, 8):  # a ring of two devices is one step, without a loop and what that holds
        program, said = compiled(chip, name, parts * own, Axes(data=1, sequence=parts), parts, **options)
        text = program.as_text()
        assert said == "splash" and "tpu_custom_call" in text
        assert "all-gather" not in text and "collective-permute" in text
        needed[parts] = program.memory_analysis().temp_size_in_bytes
    assert needed[8] < 1.1 * needed[4], needed
    scores = 4 * 4 * own * own  # in float32, of four heads and two shards of one sequence
    assert needed[4] < scores / 2, needed


@pytest.mark.parametrize("chip", CHIPS)
@pytest.mark.parametrize("name", ["linear", "retention"])
def test_recurrences_run_on_their_kernel_forward_and_backward(chip, name):
    """Heads of 128, the sum of keys with its extra channel, a decay."""
    length = 2048
    program, said = compiled(chip, name, length)
    assert said == "recurrence"
    calls = program.as_text().count('custom_call_target="tpu_custom_call"')
    assert calls == 4, "forward, dq, dv and dk"
    assert not largest_square(program.as_text(), length)


@pytest.mark.parametrize("chip", CHIPS)
@pytest.mark.parametrize("name", ["delta_net", "gated_delta_net"])
def test_the_delta_rule_runs_on_its_kernel_forward_and_backward(chip, name):
    length = 1024
    program, said = compiled(chip, name, length)
    assert said == "delta"
    text = program.as_text()
    calls = text.count('custom_call_target="tpu_custom_call"')
    assert calls == 8, "forward, w and its cotangent, r, dq, db, and two for dk"
    declared = sum(map(int, re.findall(r'"cost_estimate":\{[^}]*"flops":"?(\d+)', text)))
    blocks, rows = length // recurrence.BLOCK, 2 * 4
    solved = delta.products(128, 128, 1) + 2 * delta.products(128, 128, 1, reads=False)
    assert declared == 2 * blocks * rows * (solved + 5 * recurrence.products(128, 128, 1)), "for the planner"
    assert not largest_square(text, length)


@pytest.mark.parametrize("axes, parts", [(Axes(data=2, tensor=2), 4), (Axes(sequence=2), 2)])
def test_the_delta_rule_runs_on_its_kernel_on_a_mesh(axes, parts):
    program, said = compiled("v5e", "gated_delta_net", 1024, axes, parts)
    assert said == "delta" and "tpu_custom_call" in program.as_text()


@pytest.mark.parametrize("dtype, size", [("float32", 16), ("float32", 256), ("bfloat16", 64)])
def test_other_heads_and_float32_of_the_delta_rule_compile(dtype, size):
    program, said = compiled("v5e", "gated_delta_net", 300, dtype=dtype, head_size=size)
    assert said == "delta"


@pytest.mark.parametrize("axes, parts", [(Axes(data=2, tensor=2), 4), (Axes(sequence=2), 2)])
def test_recurrences_run_on_their_kernel_on_a_mesh(axes, parts):
    program, said = compiled("v5e", "retention", 1024, axes, parts)
    assert said == "recurrence" and "tpu_custom_call" in program.as_text()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("size", [16, 64, 256])
def test_other_heads_and_float32_compile(dtype, size):
    program, said = compiled("v5e", "retention", 300, dtype=dtype, head_size=size)
    assert said == "recurrence"


@pytest.mark.parametrize("kind", ["plain", "decayed"])
@pytest.mark.parametrize("chip", ["v5e", "v5p"])
def test_a_step_of_the_recurrence_has_few_more_bundles_than_its_products_need(chip, kind):
    """Its listing, not its time. Of v6e, whose units are 256 wide, blocks of 128 cannot fill them."""
    assert bundles.measured(chip, kind == "decayed")["ratio"] <= 1.25


def test_blocks_of_a_cut_sequence_and_a_bias_run_on_xla_and_say_so():
    blocks = tuple((row,) for row in range(8))
    for name, axes, parts, options, why in (
        ("block_sparse", Axes(sequence=2), 2, {"block": 128, "blocks": blocks}, "cut over devices"),
        ("alibi", Axes(), 1, {}, "more to a score"),
    ):
        program, said = compiled("v5e", name, 1024, axes, parts, **options)
        assert said.startswith("xla (") and why in said
        assert "tpu_custom_call" not in program.as_text()
