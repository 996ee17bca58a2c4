"""The recurrence engine against the recurrence as it is written, in float64, values and gradients."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from transformer_jax.attention.contract import Layout
from transformer_jax.attention.engines import forms, recurrence
from transformer_jax.attention.engines.forms import Recurrence
from transformer_jax.errors import BadInput
from transformer_jax.measure.flops import count_flops

pytestmark = pytest.mark.quick
B, N, H, M = 2, 2, 4, 3
# Many small programs that run once: compiling them quickly is what counts.
jit = partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


def make(kind: str, length: int, seed: int = 0) -> Recurrence:
    """Random streams of the form that the words of `kind` name."""
    words = kind.split()
    micro = 2 if "micro" in words else 1
    draw = np.random.default_rng(seed)
    normal = lambda *shape: jnp.asarray(draw.standard_normal(shape))
    steps = (B, length * micro, N)
    streams = {"q": normal(B, length, N, H), "k": normal(*steps, H), "v": normal(*steps, M)}
    shape = (*steps, H) if "channel" in words else steps
    if "head" in words or "channel" in words:
        streams["log_decay"] = -jnp.exp(normal(*shape))
        if "zeros" in words:
            streams["log_decay"] = jnp.where(normal(*shape) > 1, -jnp.inf, streams["log_decay"])
        if "signed" in words:
            streams["sign"] = jnp.sign(normal(*shape))
    if "tied" in words:
        streams["k"] = streams["k"] / jnp.linalg.norm(streams["k"], axis=-1, keepdims=True)
        streams |= {"a": -2 * jax.nn.sigmoid(normal(*steps)), "b": streams["k"]}
    if "free" in words:
        streams |= {"a": normal(*steps, H) / 3, "b": normal(*steps, H)}
    if "bonus" in words:
        streams["bonus"] = normal(N, H)
    if "gain" in words:
        streams["log_gain"] = 50 * normal(*steps)
    if "sum" in words:
        streams |= {"q": jnp.exp(streams["q"]), "k": jnp.exp(streams["k"]), "normalizer": "sum"}
    if "bounded" in words:
        streams["normalizer"] = "bounded"
    return Recurrence(**streams)


def as_written(r: Recurrence, layout: Layout) -> tuple[jax.Array, jax.Array]:
    """o and the last state S (without its gain taken out), one token after another."""
    length = r.q.shape[1]
    micro = r.k.shape[1] // length
    v = r.v if r.normalizer == "none" else jnp.concatenate([r.v, jnp.ones_like(r.v[..., :1])], -1)
    D = jnp.ones(r.k.shape) if r.log_decay is None else jnp.exp(r.log_decay)
    D = D * (1 if r.sign is None else jax.lax.stop_gradient(r.sign))
    D = jnp.broadcast_to(D if D.ndim == 4 else D[..., None], r.k.shape)
    a, b = jnp.zeros_like(r.k), jnp.zeros_like(r.k)
    if r.a is not None:
        a, b = (r.a if r.a.ndim == 4 else r.a[..., None] * r.k), r.b
    gain = jnp.ones(r.k.shape[:3]) if r.log_gain is None else jnp.exp(r.log_gain)
    starts = (
        layout.starts(jnp.full((B,), -1)) if layout.segments is not None else jnp.zeros((B, length), bool)
    )
    valid = jnp.ones((B, length), bool) if layout.valid is None else layout.valid
    by_token = lambda x: jnp.moveaxis(x.reshape(B, length, -1, *x.shape[2:]), 0, 2)

    def token(S, x):
        q, k, v, D, a, b, gain, start, valid = x
        S = jnp.where(start[0][:, None, None, None], 0, S)
        before = S
        for i in range(micro):
            found = jnp.einsum("bnhm,bnh->bnm", S, b[i])
            S = D[i][..., None] * S + a[i][..., None] * found[..., None, :]
            S = S + (gain[i][..., None] * k[i])[..., None] * v[i][..., None, :]
        read = S
        if r.bonus is not None:
            read = before + (r.bonus[None] * k[0])[..., None] * v[0][..., None, :]
        o = jnp.einsum("bnhm,bnh->bnm", read, q[0])
        if r.normalizer != "none":
            z = o[..., -1:]
            o = o[..., :-1] / (z if r.normalizer == "sum" else jnp.maximum(jnp.abs(z), 1))
        valid = valid[0][:, None, None]
        return jnp.where(valid[..., None], S, before), jnp.where(valid, o, 0)

    empty = jnp.zeros((B, N, H, v.shape[-1]))
    S, o = jax.lax.scan(token, empty, tuple(map(by_token, (r.q, r.k, v, D, a, b, gain, starts, valid))))
    return jnp.moveaxis(o, 0, 1), S


def layout_of(length: int, kind: str) -> Layout:
    positions = Layout.plain(B, length).positions
    if kind == "plain":
        return Layout(positions)
    segments = jnp.asarray(np.stack([np.arange(length) // 5, np.arange(length) // 9]), jnp.int32)
    return Layout(positions, segments, jnp.asarray([length - 2, length // 2]))


def close(found, wanted, within=1e-9):
    for (path, a), b in zip(jax.tree.leaves_with_path(found), jax.tree.leaves(wanted), strict=True):
        assert np.isfinite(a).all(), path
        scale = 1 + np.abs(b).max(initial=0)
        assert np.abs(np.asarray(a) - np.asarray(b)).max(initial=0) <= within * scale, path


KINDS = (
    "sum",
    "head",
    "channel",
    "head zeros",
    "channel zeros",
    "head signed zeros",
    "channel signed",
    "tied",
    "head tied",
    "channel tied zeros",
    "head free",
    "channel free zeros signed",
    "head micro tied signed",
    "channel micro free",
    "head micro zeros",
    "channel bonus",
    "head bonus zeros signed",
    "gain sum",
    "head gain sum",
    "head zeros gain bounded",
    "channel gain bounded",
    "head gain bounded tied",
    "head gain bounded free",
)


CASES = [(kind, "packed", 23, 7) for kind in KINDS] + [
    (kind, "plain", 33, 32) for kind in ("channel zeros", "head free", "head gain bounded tied")
]


@pytest.mark.parametrize(("kind", "layout", "length", "chunk"), CASES)
def test_every_form_equals_the_recurrence_as_written(kind, layout, length, chunk):
    r, layout = make(kind, length), layout_of(length, layout)
    seen = 1.0 if layout.valid is None else layout.valid[..., None, None]

    def total(fn, r):
        o = fn(r)[0] * seen
        return jnp.sum(o * jnp.cos(jnp.arange(o.size).reshape(o.shape))), o

    def both(fn):
        (_, o), gradient = jit(jax.value_and_grad(partial(total, fn), has_aux=True))(r)
        return o, gradient

    (o, gradient), (o_wanted, gradient_wanted) = (
        both(lambda r: forms.recur(r, layout, chunk=chunk)),
        both(lambda r: as_written(r, layout)),
    )
    close(o, o_wanted)
    close(gradient, gradient_wanted)


@pytest.mark.parametrize("kind", ["channel zeros", "head micro tied signed"])
def test_the_two_executions_agree_on_values_states_and_gradients(kind):
    r = make(kind, 21)
    steps, _, _ = forms._steps(r, None, None, lambda own: forms.empty_state(r)["m"])
    S = jnp.asarray(np.random.default_rng(1).standard_normal(steps.empty().shape))

    def both(execution):
        def total(steps, S):
            o, S = execution(steps, S)
            return jnp.sum(jnp.sin(o)) + jnp.sum(jnp.cos(S)), (o, S)

        return jit(jax.value_and_grad(total, argnums=(0, 1), has_aux=True))(steps, S)

    wanted = both(recurrence.dense)
    for chunk in (1, 21):
        close(both(partial(recurrence.chunked, chunk=chunk)), wanted)


@pytest.mark.parametrize("kind", ["channel signed free", "head gain bounded", "channel bonus"])
def test_cutting_anywhere_changes_nothing(kind):
    r = make(kind, 23)
    layout = layout_of(23, "packed")
    go = jit(partial(forms.recur, chunk=4))
    whole, last = go(r, layout)
    for cut in (1, 11, 22):
        state, pieces = None, []
        for begin, end in ((0, cut), (cut, 23)):
            part = replace(
                r,
                **{
                    name: x[:, begin:end]
                    for name, x in vars(r).items()
                    if name not in ("normalizer", "bonus") and x is not None
                },
            )
            lengths = jnp.clip(layout.lengths - begin, 0, end - begin)
            at = Layout(layout.positions[:, begin:end], layout.segments[:, begin:end], lengths)
            o, state = go(part, at, state)
            pieces.append(o)
        valid = layout.valid[..., None, None]
        close(jnp.concatenate(pieces, 1) * valid, whole * valid)
        for name in last:
            np.testing.assert_allclose(state[name], last[name], rtol=1e-9, atol=1e-12)


def test_a_row_without_tokens_keeps_its_state():
    r = make("head gain bounded tied", 6)
    _, state = forms.recur(r, layout_of(6, "plain"))
    lengths = Layout(Layout.plain(B, 6).positions, None, jnp.array([0, 3]))
    o, after = forms.recur(r, lengths, state)
    assert np.isfinite(o).all()
    for name in state:
        np.testing.assert_array_equal(after[name][0], state[name][0])
    assert np.abs(after["S"][1] - state["S"][1]).max() > 0


@pytest.mark.parametrize("layout", ["plain", "packed"])
@pytest.mark.parametrize("kind", ["sum", "gain sum"])
def test_both_ways_an_undecayed_form_sums_over_all_keys_of_its_segment(kind, layout):
    r, layout = make(kind, 17), layout_of(17, layout)
    gain = 0 if r.log_gain is None else r.log_gain.transpose(0, 2, 1)[:, :, None, :]
    A = jnp.einsum("btnh,bsnh->bnts", r.q, r.k) * jnp.exp(gain)
    if layout.segments is not None:
        same = layout.segments[:, :, None] == layout.segments[:, None, :]
        A = A * (same & layout.valid[:, None, :])[:, None]
        A = A + 1e-300  # a padded query may see nothing
    wanted = jnp.einsum("bnts,bsnm->btnm", A / A.sum(-1, keepdims=True), r.v)
    valid = 1.0 if layout.valid is None else layout.valid[..., None, None]
    close(forms.recur_both_ways(r, layout, 4) * valid, wanted * valid)


def test_both_ways_a_decayed_form_is_forward_plus_reversed():
    r, layout = make("head tied micro", 9), layout_of(9, "plain")
    tokens = lambda x: x.reshape(B, 9, -1, *x.shape[2:])[:, ::-1].reshape(x.shape)
    back = Recurrence(**{n: tokens(x) for n, x in vars(r).items() if n != "normalizer" and x is not None})
    wanted = as_written(r, layout)[0] + as_written(back, layout)[0][:, ::-1]
    close(forms.recur_both_ways(r, layout, 4), wanted)


@pytest.mark.parametrize("kind", ["head", "channel"])
def test_strong_decays_and_large_gains_stay_exact_in_float32(kind):
    draw = np.random.default_rng(0)
    r = make(kind, 64)
    r = replace(r, log_decay=jnp.asarray(-(10.0 ** draw.uniform(-3, 2.5, r.log_decay.shape))))
    single = jax.tree.map(lambda x: x.astype(jnp.float32), r)
    layout = layout_of(64, "plain")
    close(forms.recur(single, layout)[0], as_written(r, layout)[0], within=1e-5)
    gradient = jax.grad(lambda r: jnp.sum(forms.recur(r, layout)[0]))(single)
    assert all(np.isfinite(g).all() for g in jax.tree.leaves(gradient))
    gained = replace(single, log_gain=jnp.asarray(draw.normal(0, 300, (B, 64, N)), jnp.float32))
    gained = replace(gained, normalizer="bounded")
    o, _ = forms.recur(gained, layout)
    assert np.isfinite(o).all() and np.abs(o).max() < 1e3


@pytest.mark.parametrize("kind", ["head", "channel"])
def test_a_decay_of_zero_leaves_no_trace(kind):
    """Not a small one: what came before may be anything, in the middle of a chunk as at its start."""
    r = make(kind, 24)
    r = replace(r, log_decay=r.log_decay.at[:, 13].set(-jnp.inf))
    other = replace(r, k=r.k.at[:, :13].multiply(1e30), v=r.v.at[:, :13].add(1e30))
    (o, state), (o_other, state_other) = (forms.recur(x, layout_of(24, "plain")) for x in (r, other))
    np.testing.assert_array_equal(o[:, 13:], o_other[:, 13:])
    np.testing.assert_array_equal(state["S"], state_other["S"])
    assert np.abs(o[:, :13] - o_other[:, :13]).max() > 1e30


def test_repeated_keys_are_solved_exactly_in_float32():
    """All keys equal: products of the triangular matrix grow to 10¹⁷, its inverse stays ±1."""
    r = make("tied", 64)
    k = jnp.broadcast_to(r.k[:, :1], r.k.shape)
    r = replace(r, k=k, b=k, a=-jnp.ones_like(r.a))
    single = jax.tree.map(lambda x: x.astype(jnp.float32), r)
    layout = layout_of(64, "plain")
    close(forms.recur(single, layout, chunk=64)[0], as_written(r, layout)[0], within=3e-6)


def test_a_shard_is_an_affine_map_that_composes():
    """The state of a sequence from the summaries of its halves, each made from nothing."""
    r = make("head tied", 16)
    steps, _, _ = forms._steps(r, None, None, lambda own: forms.empty_state(r)["m"])
    identity = jnp.broadcast_to(jnp.eye(H), (B, N, H, H))

    def summary(part):
        v = jnp.concatenate([part.v, jnp.zeros((*part.v.shape[:3], H))], -1)
        start = jnp.concatenate([part.empty(), identity], -1)
        _, S = recurrence.run(replace(part, v=v), start, chunk=4)
        return S[..., :M], S[..., M:]

    halves = [jax.tree.map(lambda x, s=s: x[:, s : s + 8], steps) for s in (0, 8)]
    (first, _), (second, transition) = map(summary, halves)
    close(second + transition @ first, recurrence.run(steps)[1])


@pytest.mark.parametrize("kind", ["sum", "head", "channel", "head tied", "channel free", "head micro tied"])
@pytest.mark.parametrize("length", [1, 150])
def test_flops_are_those_of_the_program(kind, length):
    r, layout = make(kind, length), layout_of(length, "plain")
    counted = count_flops(lambda r: forms.recur(r, layout)[0], r)
    assert forms.recurrence_flops(r, "causal") == counted


def test_half_a_correction_is_refused():
    r = make("tied", 3)
    with pytest.raises(BadInput, match="both a and b"):
        replace(r, b=None)
