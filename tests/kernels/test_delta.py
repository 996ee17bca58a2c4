"""The delta rule on its kernel, interpreted, against the recurrence as it is written in float64."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.conformance import on_shards
from tests.kernels.test_recurrence import differentiated, exact, mixed
from transformer_jax.attention.contract import Layout
from transformer_jax.attention.engines import recurrence as engine
from transformer_jax.conformance.subject import agree, jit
from transformer_jax.errors import BadInput
from transformer_jax.kernels import delta as kernel
from transformer_jax.parallel.mesh import Axes

B, N, H, M = 1, 2, 16, 24
BUDGET = {"float32": 1e-5, "bfloat16": 2e-2}
"""Of values and states; gradients have three times as much. Borders cost precision (`recurrence.decays`):
with many of them float32 has ten times as much. In bfloat16 it is twice that of the recurrence without
corrections: every token reads what was rounded and writes it again."""


def steps_of(kind: str, length: int, dtype: str) -> tuple[engine.Steps, jax.Array]:
    """Steps with "no", "some" or "strong" decay, β from 0 to 2, of every fifth token 0; or "flips": no decay,
    β of 2, and keys that are almost the same. And the state before them."""
    draw = np.random.default_rng(0)
    normal = lambda *shape: draw.standard_normal(shape)
    unit = lambda x: x / np.linalg.norm(x, axis=-1, keepdims=True)
    beta = 2 / (1 + np.exp(-2 * normal(B, length, N)))
    beta[:, ::5] = 0
    keys, g = unit(normal(B, length, N, H)), None
    if kind == "flips":
        beta, keys = np.full_like(beta, 2), unit(keys + 5)
    elif kind != "no":
        g = -np.exp(2 * normal(B, length, N) - 3)
    if kind == "strong":
        g = np.where(normal(B, length, N) > 1.5, -np.inf, np.where(normal(B, length, N) > 1.5, -60.0, g))
    # As Gated DeltaNet has it, the error is that of the state that has decayed.
    a = jnp.asarray(-beta if g is None else -beta * np.exp(g), jnp.float32)
    q, v = normal(B, length, N, H), normal(B, length, N, M) * beta[..., None]
    q, k, v = (jnp.asarray(x, dtype) for x in (q, keys, v))
    decay = None if g is None else jnp.asarray(g, jnp.float32)
    steps = engine.Steps(q=q, k=k, v=v, log_decay=decay, a=a, b=k)
    return steps, jnp.asarray(normal(B, N, H, M), jnp.float32)


def interpreted(x: engine.Steps, S: jax.Array):
    return kernel.run(x.q, x.k, x.v, x.log_decay, x.a, x.b, S, interpret=True)


slow = partial(pytest.param, marks=pytest.mark.slow)


@pytest.mark.parametrize(
    "kind, dtype, length",
    [
        ("some", "float32", 140),  # two blocks, the second of 12 tokens
        *(slow(kind, dtype, 300) for kind in ("no", "some", "strong") for dtype in BUDGET),
        slow("flips", "float32", 300),
        slow("no", "float32", 40),
    ],
)
def test_the_kernel_is_the_delta_rule(kind, dtype, length):
    """Values, the last state, and the gradients in all that it is given."""
    steps, S = steps_of(kind, length, dtype)
    found, gradient = jit(partial(differentiated, interpreted))(steps, S)
    with jax.enable_x64(True):
        wanted, gradient_wanted = jit(partial(differentiated, engine.dense))(exact(steps), exact(S))
    # Keys that flip are ill-conditioned: XLA's execution, too, is 3e-5 off there, the kernel 1e-4.
    more = {"strong": 10, "flips": 20}.get(kind, 1) if dtype == "float32" else 1
    budget = BUDGET[dtype] * more
    agree(found, wanted, within=budget, what=f"values in {dtype}")
    keep = lambda tree: (replace(tree[0], log_decay=None), tree[1])
    agree(keep(gradient), keep(gradient_wanted), within=3 * budget, what="gradient of ")
    if steps.log_decay is not None:
        # A sum, over all later tokens, of differences of products, whose rounding adds up. Where a decay
        # forgets it has none, which the definition gives as 0 · ∞.
        decay, of_decay = gradient[0].log_decay, np.nan_to_num(gradient_wanted[0].log_decay)
        agree(decay, of_decay, within=max(3 * budget, 1e-4), what="gradient of the decay")


@pytest.mark.parametrize("dtype, within", [("float32", 1e-6), ("bfloat16", 1e-4)])
def test_the_inverse_does_not_grow_where_keys_repeat(dtype, within):
    """β = 2 and one key for all: the powers of N reach 10³⁷, and of 128 bits none would be left."""
    t = np.arange(128)
    drawn = np.random.default_rng(0).standard_normal((128, 128)) / 8
    for N_ in (-2.0 * np.tri(128, k=-1), np.tril(drawn, -1)):
        apart = jnp.asarray(t[:, None] ^ t, jnp.int32)
        *_, X = kernel.inverse(jnp.asarray(N_, jnp.float32), apart, jnp.dtype(dtype))
        agree(X, np.linalg.inv(np.eye(128) - N_), within=within, what="inverse")


@pytest.mark.slow
def test_cutting_anywhere_changes_nothing():
    steps, S = steps_of("some", 300, "float32")
    whole = jit(interpreted)(steps, S)
    for cut in (1, 128, 200):
        first, second = (jax.tree.map(lambda x, s=s: x[:, s], steps) for s in (slice(cut), slice(cut, None)))
        o1, state = jit(interpreted)(first, S)
        o2, state = jit(interpreted)(second, state)
        agree((jnp.concatenate([o1, o2], 1), state), whole, within=4e-6, what=f"cut at {cut}")


@pytest.mark.slow
def test_what_is_forgotten_leaves_no_trace():
    """In the middle of a block, at the start of one, and at the start of a chunk."""
    steps, S = steps_of("some", 300, "float32")
    for border in (50, 128, 256):
        g, a = steps.log_decay.at[:, border].set(-jnp.inf), steps.a.at[:, border].set(0)
        forgets = replace(steps, log_decay=g, a=a)
        other = replace(forgets, v=steps.v.at[:, :border].add(1e9))
        (o, last), (o_other, last_other) = (jit(interpreted)(x, S) for x in (forgets, other))
        np.testing.assert_array_equal(o[:, border:], o_other[:, border:])
        np.testing.assert_array_equal(last, last_other)
        assert np.abs(o[:, :border] - o_other[:, :border]).max() > 1e7


@pytest.mark.parametrize(
    "name, length, causal, state, options",
    [
        slow("gated_delta_net", 100, True, True, {}),
        slow("gated_delta_net", 150, True, False, {}),
        slow("delta_net", 150, True, True, {"beta_max": 2.0}),
        slow("delta_net", 150, False, False, {}),
    ],
)
def test_mechanisms_with_padding_and_packing_are_those_of_the_engine(name, length, causal, state, options):
    segments = jnp.asarray(np.stack([np.arange(length) // 60, np.arange(length) // 131]), jnp.int32)
    layout = Layout(Layout.plain(2, length).positions, segments, jnp.asarray([length, 70]))
    args = layout, length, state, causal
    found, heard = mixed(name, "interpret", *args, **options)
    assert heard == {name: {"delta (interpreted)"}}
    wanted, _ = mixed(name, "xla", *args, **options)
    # Without the sum that is differentiated, whose terms cancel to a hundredth of their norm.
    kept = lambda x: (x[0][1], x[1])
    agree(kept(found), kept(wanted), within=3e-5, what=f"{name} ")


@pytest.mark.parametrize(
    "name, why",
    [("kimi_delta", "not one per channel"), ("delta_product", "one micro-step"), ("rwkv7", "multiples of k")],
)
def test_what_the_kernel_cannot_honour_is_refused(name, why):
    with pytest.raises(BadInput, match=why):
        mixed(name, "interpret", Layout.plain(2, 20), 20, False, True)


@pytest.mark.parametrize(
    "name, axes",
    [
        ("gated_delta_net", Axes(data=1, fsdp=2, tensor=2, sequence=2)),
        pytest.param("gated_delta_net", Axes(data=1, sequence=8), marks=pytest.mark.slow),
        pytest.param("delta_net", Axes(data=1, sequence=8), marks=pytest.mark.slow),
    ],
)
def test_on_shards_of_a_sequence_it_is_the_engine_on_one_device(on_eight_devices, name, axes):
    """What a shard passes on, its end state and its transition product, comes from the kernel as well; the
    gradient of a decay has three times its budget on one device (docs/kernels.md), as two calls add to it."""
    said = on_eight_devices(on_shards.kernel_failure, name, "causal", axes, kernel=kernel.NAME, slopes=3e-4)
    assert said == ""
