"""The recurrence on its kernel, interpreted, against the recurrence as it is written in float64."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests.conformance import on_shards
from transformer_jax.attention.catalogue import build
from transformer_jax.attention.contract import Geometry, Layout
from transformer_jax.attention.engines import recurrence as engine
from transformer_jax.conformance.subject import agree, jit
from transformer_jax.errors import BadInput
from transformer_jax.kernels import recurrence as kernel
from transformer_jax.kernels.choice import executing, recording
from transformer_jax.parallel.mesh import Axes

B, N, H, M = 1, 2, 16, 24
BUDGET = {"float32": 1e-5, "bfloat16": 1e-2}
"""Of values and states; gradients have three times as much, the decay's in bfloat16 more (below). Borders
cost precision (`kernel.decays`): with many of them float32 has ten times as much."""


def steps_of(kind: str, length: int, dtype: str, seed: int = 0) -> tuple[engine.Steps, jax.Array]:
    """Steps with "no", "some" or "strong" decay, and the state before them."""
    draw = np.random.default_rng(seed)
    normal = lambda *shape: draw.standard_normal(shape)
    g = None
    if kind != "no":
        g = -np.exp(2 * normal(B, length, N) - 3)
    if kind == "strong":
        g = np.where(normal(B, length, N) > 1.5, -np.inf, np.where(normal(B, length, N) > 1.5, -60.0, g))
    sizes = {"q": H, "k": H, "v": M}
    streams = {name: jnp.asarray(normal(B, length, N, size), dtype) for name, size in sizes.items()}
    decay = None if g is None else jnp.asarray(g, jnp.float32)
    return engine.Steps(**streams, log_decay=decay), jnp.asarray(normal(B, N, H, M), jnp.float32)


def differentiated(run, steps: engine.Steps, S: jax.Array):
    """(o, S) and the gradients of a weighted sum of both."""
    ids = lambda x: jnp.cos(jnp.arange(x.size, dtype=S.dtype)).reshape(x.shape)

    def total(steps, S):
        o, last = run(steps, S)
        o, last = o.astype(S.dtype), last.astype(S.dtype)
        return jnp.sum(o * ids(o)) + jnp.sum(last * ids(last)), (o, last)

    (_, found), gradient = jax.value_and_grad(total, argnums=(0, 1), has_aux=True)(steps, S)
    return found, gradient


def interpreted(steps: engine.Steps, S: jax.Array):
    return kernel.run(steps.q, steps.k, steps.v, steps.log_decay, S, interpret=True)


def exact(tree):
    return jax.tree.map(lambda x: np.asarray(x, np.float64), tree)


# Two chunks, neither of them full; a part of a block.
@pytest.mark.parametrize("length", [300, pytest.param(40, marks=pytest.mark.slow)])
@pytest.mark.parametrize("kind", ["no", "some", "strong"])
@pytest.mark.parametrize("dtype", BUDGET)
def test_the_kernel_is_the_recurrence(kind, dtype, length):
    steps, S = steps_of(kind, length, dtype)
    found, gradient = jit(partial(differentiated, interpreted))(steps, S)
    with jax.enable_x64(True):
        wanted, gradient_wanted = jit(partial(differentiated, engine.dense))(exact(steps), exact(S))
    budget = BUDGET[dtype] * (10 if kind == "strong" and dtype == "float32" else 1)
    agree(found, wanted, within=budget, what=f"values in {dtype}")
    within = 3 * budget
    if kind != "no" and dtype == "bfloat16":
        # The decay's gradient is a sum, over all later tokens, of differences of rounded products.
        decay, of_decay = gradient[0].log_decay, gradient_wanted[0].log_decay
        agree(decay, np.nan_to_num(of_decay), within=2 * within, what="gradient of the decay")
    keep = lambda tree: (replace(tree[0], log_decay=None), tree[1])
    agree(keep(gradient), keep(gradient_wanted), within=within, what=f"gradient in {dtype} of ")
    if kind == "some" and dtype == "float32":
        agree(gradient[0].log_decay, gradient_wanted[0].log_decay, within=within, what="gradient of decay")


@pytest.mark.parametrize(
    "kind, within", [("some", 2e-6), pytest.param("strong", 1e-4, marks=pytest.mark.slow)]
)
def test_cutting_anywhere_changes_nothing(kind, within):
    """Where much is forgotten within a block, precision depends on where blocks begin (`decays`)."""
    steps, S = steps_of(kind, 300, "float32")
    o, last = jit(interpreted)(steps, S)
    for cut in (1, 128, 200):
        first, second = (jax.tree.map(lambda x, s=s: x[:, s], steps) for s in (slice(cut), slice(cut, None)))
        o1, state = jit(interpreted)(first, S)
        o2, state = jit(interpreted)(second, state)
        agree((jnp.concatenate([o1, o2], 1), state), (o, last), within=within, what=f"cut at {cut}")


def test_what_is_forgotten_leaves_no_trace():
    """In the middle of a block, at the start of one, and at the start of a chunk."""
    steps, S = steps_of("some", 300, "float32")
    for border in (50, 128, 256):
        g = steps.log_decay.at[:, border].set(-jnp.inf)
        forgets = replace(steps, log_decay=g)
        other = replace(forgets, k=steps.k.at[:, :border].multiply(1e9), v=steps.v.at[:, :border].add(1e9))
        (o, last), (o_other, last_other) = (jit(interpreted)(x, S) for x in (forgets, other))
        np.testing.assert_array_equal(o[:, border:], o_other[:, border:])
        np.testing.assert_array_equal(last, last_other)
        assert np.abs(o[:, :border] - o_other[:, :border]).max() > 1e9


def mixed(name: str, execution: str, layout: Layout, length: int, state: bool, causal: bool, **options):
    """Values, the state if any, and the gradient in x."""
    geometry = Geometry(width=32, heads=2, head_size=16, length=length, causal=causal, execution=execution)
    mixer = build(name, geometry, rngs=nnx.Rngs(0), **options)
    x = jnp.asarray(np.random.default_rng(1).standard_normal((2, length, 32)), jnp.float32)
    seen = 1.0 if layout.valid is None else layout.valid[..., None]

    def total(x):
        y, last = mixer(x, layout, mixer.init_state(2) if state else None)
        return jnp.sum(y * seen * jnp.cos(jnp.arange(y.size)).reshape(y.shape)), (y * seen, last)

    with recording() as heard:
        found = jit(jax.value_and_grad(total, has_aux=True))(x)
    return found, heard


@pytest.mark.parametrize(
    "name, causal, state, options",
    [
        ("linear", True, True, {}),  # no decay, a normalizer
        ("retention", True, False, {}),
        ("retention", False, False, {}),  # forward and reversed
        ("mamba2", True, True, {"state_size": 8}),  # keys of another size than values
        ("mlstm", True, True, {}),  # a stabilizer
    ],
)
def test_mechanisms_with_padding_and_packing_are_those_of_the_engine(name, causal, state, options):
    length = 150
    segments = jnp.asarray(np.stack([np.arange(length) // 60, np.arange(length) // 131]), jnp.int32)
    layout = Layout(Layout.plain(2, length).positions, segments, jnp.asarray([length, 70]))
    args = layout, length, state, causal
    found, heard = mixed(name, "interpret", *args, **options)
    assert heard == {name: {"recurrence (interpreted)"}}
    wanted, _ = mixed(name, "xla", *args, **options)
    agree(found, wanted, within=3e-5, what=f"{name} ")


def test_what_the_kernel_cannot_honour_is_refused():
    with pytest.raises(BadInput, match="not one per channel"):
        mixed("gated_linear_attention", "interpret", Layout.plain(2, 20), 20, False, True)
    steps, S = steps_of("no", 20, "float32")
    with executing("x", "interpret"), pytest.raises(BadInput, match="multiple of 8"):
        engine.run(jax.tree.map(lambda x: x[..., :5], steps))
    with executing("x", "interpret"), pytest.raises(BadInput, match="float16"):
        engine.run(jax.tree.map(lambda x: x.astype(jnp.float16), steps))


@pytest.mark.parametrize(
    "name, direction, axes",
    [
        ("retention", "causal", Axes(data=1, fsdp=2, tensor=2, sequence=2)),
        ("linear", "causal", Axes(data=1, sequence=8)),
    ],
)
def test_on_shards_of_a_sequence_it_is_the_engine_on_one_device(on_eight_devices, name, direction, axes):
    """What a shard passes on comes from the kernel as well; padding and packing are there."""
    assert on_eight_devices(on_shards.kernel_failure, name, direction, axes, kernel=kernel.NAME) == ""
