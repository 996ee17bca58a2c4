"""Softmax over a pattern: the engine's own properties. The variants are proved by the conformance suite."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from transformer_jax.attention import catalogue
from transformer_jax.attention.contract import Geometry, Layout
from transformer_jax.attention.engines import softmax
from transformer_jax.attention.engines.softmax import attend, merge, sink
from transformer_jax.attention.engines.softmax_plan import Blocks, Plan, band
from transformer_jax.errors import BadInput
from transformer_jax.measure.flops import count_flops
from transformer_jax.measure.program import compiled_temporaries, largest_array

pytestmark = pytest.mark.quick

BATCH, HEADS, SIZE = 2, 4, 6


def draw(seed: int, *shape: int) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape))


def qkv(queries: int, keys: int, kv_heads: int = HEADS):
    return (
        draw(0, BATCH, queries, HEADS, SIZE),
        draw(1, BATCH, keys, kv_heads, SIZE),
        draw(2, BATCH, keys, kv_heads, SIZE + 1),
    )


def dense(q, k, v, seen, bias=0.0, sinks=None):
    """softmax(q kᵀ + bias) v, written out; `seen` and `bias` broadcast to (B, N, T, S)."""
    k, v = (jnp.repeat(x, q.shape[2] // x.shape[2], axis=2) for x in (k, v))
    s = jnp.where(seen, jnp.einsum("btnh,bsnh->bnts", q, k) + bias, -jnp.inf)
    if sinks is not None:
        s = jnp.concatenate([s, jnp.broadcast_to(sinks[None, :, None, None], (*s.shape[:3], 1))], -1)
    top = jnp.maximum(s.max(-1, keepdims=True), -1e30)
    p = jnp.exp(s - jax.lax.stop_gradient(top))
    total = p.sum(-1, keepdims=True)
    p = p / jnp.where(total > 0, total, 1)
    return jnp.einsum("bnts,bsnh->btnh", p[..., : k.shape[1]], v)


def same(found, wanted, *arguments):
    """Values and gradients of two functions agree."""

    def both(f):
        def total(*a):
            o = f(*a)
            return jnp.sum(jnp.sin(1.3 * o)), o

        (_, o), gradient = jax.value_and_grad(total, tuple(range(len(arguments))), has_aux=True)(*arguments)
        return o, gradient

    for a, b in zip(*map(jax.tree.leaves, jax.jit(lambda: (both(found), both(wanted)))()), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-12)


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


def products(qk, query, key, shared):
    return qk


def within(before, after):
    """A score that sees keys i − before … i + after."""

    def score(qk, query, key, shared):
        distance = query["i"][:, None] - key["i"][None]
        seen = jnp.ones_like(distance, bool)
        seen = seen if before is None else seen & (distance <= before)
        seen = seen if after is None else seen & (distance >= -after)
        return jnp.where(seen, qk, -jnp.inf)

    return score


def near(queries, keys, before, after):
    distance = np.arange(queries)[:, None] - np.arange(keys)[None]
    seen = np.ones_like(distance, bool)
    seen = seen if before is None else seen & (distance <= before)
    return (seen if after is None else seen & (distance >= -after))[None, None]


@pytest.mark.parametrize(
    ("queries", "keys", "kv_heads", "before", "after"),
    [
        (37, 37, 4, None, 0),
        (150, 150, 2, None, 0),
        (41, 41, 1, 5, 0),
        (41, 41, 2, 9, 9),
        (50, 13, 2, None, None),
    ],
)
def test_bands_equal_the_formula(queries, keys, kv_heads, before, after):
    plan = band(queries, keys, before=before, after=after, block=8)

    def engine(q, k, v):
        query, key = {"i": jnp.arange(queries)}, {"i": jnp.arange(keys)}
        return attend(q, k, v, plan, within(before, after), query=query, key=key)[0]

    seen = near(queries, keys, before, after)
    same(engine, lambda q, k, v: dense(q, k, v, seen), *qkv(queries, keys, kv_heads))


@pytest.mark.parametrize("shape", [(), (BATCH, 2)], ids=["one list", "a list per sequence and head"])
def test_traced_blocks_equal_the_formula(shape):
    rows, keys, width, block = 5, 30, 3, 8
    lists = np.random.default_rng(3).permuted(np.tile(np.arange(4), (*shape, rows, 1)), axis=-1)[..., :width]
    lists[..., 0, 1] = -1  # an absent block
    lists[..., 2, :] = -1  # a row that sees nothing
    query_block = np.arange(33) // 7
    hit = (lists[..., None] == np.arange(4)).any(-2)[..., query_block, :]  # (…, T, blocks)
    seen = np.repeat(hit, block, axis=-1)[..., :keys]
    seen = np.repeat(seen, HEADS // 2, axis=1) if shape else seen[None, None]
    seen = seen & (np.arange(keys) % 3 > 0)
    # What the score reads of keys may belong to the place, to the token or to the head.
    biases = draw(7, keys), draw(8, BATCH, keys), draw(9, BATCH, keys, 2)

    def engine(q, k, v, biases, lists):
        def score(qk, query, key, shared):
            bias = key["place"] + key["token"] + key["head"]
            return jnp.where(key["i"][None] % 3 > 0, qk + bias[None], -jnp.inf)

        group = Blocks(rows=np.arange(rows), lists=lists, block=block)
        plan = Plan(queries=33, keys=keys, block=7, groups=[group])
        key = dict(zip(("place", "token", "head"), biases, strict=True)) | {"i": jnp.arange(keys)}
        return attend(q, k, v, plan, score, key=key)[0]

    def formula(q, k, v, biases):
        place, token, head = biases
        bias = (place[None] + token)[:, None] + jnp.repeat(jnp.moveaxis(head, 2, 1), HEADS // 2, axis=1)
        return dense(q, k, v, seen, bias[:, :, None])

    def graded(f):
        return jax.jit(jax.value_and_grad(lambda *a: jnp.sum(jnp.sin(f(*a))), (0, 1, 2, 3)))

    # The lists are arguments of the compiled function: nothing is known of them when it is compiled.
    found = graded(engine)(*qkv(33, keys, 2), biases, jnp.asarray(lists))
    wanted = graded(formula)(*qkv(33, keys, 2), biases)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-12)


def test_bias_and_sinks_have_gradients():
    """A slope per head and a decay per token and head move the scores; a sink takes weight away."""
    length = 29
    q, k, v = qkv(length, length, 2)
    decay, slopes, sinks = -jnp.abs(draw(4, BATCH, length, HEADS)), draw(5, HEADS), draw(6, HEADS)
    distance = jnp.abs(jnp.arange(length)[:, None] - jnp.arange(length)[None])

    def score(qk, query, key, shared):
        away = jnp.abs(query["i"][:, None] - key["i"][None])
        return qk + query["decay"][:, None] + shared["slope"] * away

    def engine(q, k, v, decay, slopes, sinks):
        i = jnp.arange(length)
        streams = {"query": {"decay": decay, "i": i}, "key": {"i": i}, "shared": {"slope": slopes}}
        o, lse = attend(q, k, v, band(length, length, block=8), score, **streams)
        return sink(o, lse, sinks)[0]

    def formula(q, k, v, decay, slopes, sinks):
        bias = jnp.moveaxis(decay, 2, 1)[..., None] + slopes[None, :, None, None] * distance[None, None]
        return dense(q, k, v, True, bias, sinks)

    same(engine, formula, q, k, v, decay, slopes, sinks)


def test_parts_in_turn_change_nothing(monkeypatch):
    """Every sequence and every key-value head by itself, as large tiles of scores are computed."""
    monkeypatch.setattr(softmax, "sequential_parts", lambda count, tile, over: count)
    test_bands_equal_the_formula(41, 41, 2, 9, 9)
    test_traced_blocks_equal_the_formula((BATCH, 2))
    test_bias_and_sinks_have_gradients()
    monkeypatch.setattr(softmax, "sequential_parts", lambda count, tile, over: count // 2)  # two in each part
    test_bands_equal_the_formula(41, 41, 4, 9, 9)


def test_parts_merge():
    q, k, v = qkv(20, 26)

    def engine(q, k, v):
        part = lambda a, b: attend(q, k[:, a:b], v[:, a:b], band(20, b - a, block=8), products)
        return merge([part(0, 9), part(9, 10), part(10, 26)])[0]

    same(engine, lambda q, k, v: dense(q, k, v, True), q, k, v)


def test_a_query_that_sees_nothing():
    """Gives 0 and −inf, and gradients without NaN, alone and merged."""
    q, k, v = qkv(11, 11)

    def score(qk, query, key, shared):
        return jnp.where((query["i"] != 3)[:, None], qk, -jnp.inf)

    def total(q, k, v):
        part = attend(q, k, v, band(11, 11, block=4), score, query={"i": jnp.arange(11)})
        o, lse = merge([part, part])
        return jnp.sum(o) + jnp.sum(jnp.where(jnp.isfinite(lse), lse, 0)), part

    (_, (o, lse)), gradient = jax.jit(jax.value_and_grad(total, (0, 1, 2), has_aux=True))(q, k, v)
    assert not o[:, 3].any() and (lse[:, 3] == -jnp.inf).all() and jnp.isfinite(lse[:, 4]).all()
    assert all(jnp.isfinite(g).all() for g in gradient) and not gradient[0][:, 3].any()


def test_log_sum_exp_has_a_gradient():
    q, k, v = qkv(9, 9)
    engine = lambda q, k: attend(q, k, v, band(9, 9, block=4), products)[1]
    formula = lambda q, k: jax.nn.logsumexp(jnp.einsum("btnh,bsnh->btns", q, k), axis=-1)
    same(engine, formula, q, k)


def test_plans_compute_what_they_must():
    causal = band(1024, 1024, after=0)
    assert causal.pairs == 1024 * (1024 + 128) // 2
    assert len(band(16384, 16384, after=0).groups) <= 8
    assert band(16384, 16384, after=0).pairs < 0.57 * 16384**2
    window = band(16384, 16384, before=63, after=0)
    assert window.pairs <= 16384 * 256


def test_work_is_what_is_stated():
    def engine(q, k, v):
        streams = {"query": {"i": jnp.arange(300)}, "key": {"i": jnp.arange(300)}}
        return attend(q, k, v, band(300, 300, after=0, block=8), within(None, 0), **streams)[0]

    q, k, _ = qkv(300, 300, 2)
    pairs = band(300, 300, after=0, block=8).pairs
    assert count_flops(engine, q, k, k) == 4 * BATCH * HEADS * SIZE * pairs


@pytest.mark.parametrize("name", ["sliding_window", "bigbird"])
def test_sparse_patterns_take_linear_memory(name):
    """No T² array, and temporaries that grow no faster than the sequence."""

    def step(length):
        geometry = Geometry(width=8, length=length)
        mixer = catalogue.build(name, geometry, rngs=nnx.Rngs(0))
        layout = Layout.plain(1, length)
        return lambda x: jax.grad(lambda x: jnp.sum(mixer(x, layout)[0] ** 2))(x)

    x = lambda length: jax.ShapeDtypeStruct((1, length, 8), jnp.float32)
    assert largest_array(step(4096), x(4096)) < 4096**2 // 8
    assert compiled_temporaries(step(8192), x(8192)) < 4.3 * compiled_temporaries(step(2048), x(2048))


@pytest.mark.parametrize("causal", [True, False])
def test_the_naive_execution_is_the_same_attention_with_all_scores_in_memory(causal):
    """Values and gradients, padded and packed, with shared keys; and a score for each query, key and head."""
    geometry = Geometry(width=8, heads=4, kv_heads=2, length=160, causal=causal, dtype="float64")
    segments = jnp.asarray(np.arange(160)[None] // np.array([[60], [160]]))
    layout = Layout(jnp.arange(160)[None] - 60 * segments, segments, jnp.array([141, 40]))
    x = draw(0, 2, 160, 8)
    blocks, naive = (
        catalogue.build("full", geometry, rngs=nnx.Rngs(0), execution=execution)
        for execution in ("blocks", "naive")
    )
    valid = layout.valid[..., None]
    same(*(lambda x, mixer=mixer: mixer(x, layout)[0] * valid for mixer in (blocks, naive)), x)
    largest = [largest_array(lambda x, mixer=mixer: mixer(x, layout)[0], x) for mixer in (blocks, naive)]
    assert largest[0] < largest[1] == 2 * 4 * 160**2
    with pytest.raises(BadInput, match="did you mean 'naive'"):
        catalogue.build("full", geometry, rngs=nnx.Rngs(0), execution="naiv")


@pytest.mark.parametrize("name", ["full", "sliding_window", "bigbird"])
def test_rows_of_different_lengths_continue(name):
    """Chunks of which each row has its own number of valid tokens, none at times, equal the whole."""
    options = {"bigbird": {"block": 8}, "sliding_window": {"window": 5}, "full": {}}[name]
    geometry = Geometry(width=8, heads=2, kv_heads=1, length=24, dtype="float64")
    mixer = catalogue.build(name, geometry, rngs=nnx.Rngs(0), **options)
    x = draw(0, 2, 24, 8)
    graph, values = nnx.split(mixer)
    call = jax.jit(lambda x, layout, state: nnx.merge(graph, values)(x, layout, state))
    whole, _ = call(x, Layout.plain(2, 24), None)
    state, done = mixer.init_state(2), np.zeros(2, int)
    for lengths in ([0, 6], [7, 0], [1, 1], [9, 12], [0, 0], [7, 5]):
        chunk = np.stack(
            [np.resize(np.asarray(x[b, done[b] : done[b] + n]), (13, 8)) for b, n in enumerate(lengths)]
        )
        layout = Layout(jnp.asarray(done[:, None] + np.arange(13)), None, jnp.asarray(lengths))
        y, state = call(jnp.asarray(chunk), layout, state)
        for b, n in enumerate(lengths):
            np.testing.assert_allclose(y[b, :n], whole[b, done[b] : done[b] + n], atol=1e-12)
        done += lengths


def test_a_step_allocates_less_than_the_cache():
    mixer = catalogue.build("full", Geometry(width=64, length=4096), rngs=nnx.Rngs(0))
    state = mixer.init_state(2)
    step = lambda state, x: mixer(x, Layout(state["count"][:, None]), state)
    used = jax.jit(step, donate_argnums=0).lower(state, jnp.ones((2, 1, 64))).compile().memory_analysis()
    assert used.temp_size_in_bytes < state["k"].nbytes


def test_random_blocks_are_others():
    """Neither window nor global blocks, none twice, and drawn under vmap as well."""
    geometry = Geometry(width=4, length=512)
    make = lambda rngs: nnx.state(catalogue.build("bigbird", geometry, block=16, rngs=rngs))
    drawn = np.asarray(jax.vmap(make)(nnx.Rngs(0).split(3))["random"].get_value())
    assert drawn.shape == (3, 32, 3) and (drawn[:, :2] == -1).all() and len(np.unique(drawn[:, 9])) > 3
    for layer in drawn:
        for i, chosen in enumerate(layer[2:], start=2):
            assert len(set(chosen)) == 3 and chosen.min() >= 2 and (abs(chosen - i) > 1).all()


def test_bad_options_are_named():
    geometry = Geometry(width=4, length=100)
    with pytest.raises(BadInput, match="length=100 does not divide into blocks of block=64"):
        catalogue.build("bigbird", geometry, rngs=nnx.Rngs(0))
    with pytest.raises(BadInput, match="window_blocks=2 must be odd"):
        catalogue.build("bigbird", geometry, block=50, window_blocks=2, rngs=nnx.Rngs(0))
    with pytest.raises(BadInput, match="window=0"):
        catalogue.build("sliding_window", geometry, window=0, rngs=nnx.Rngs(0))
