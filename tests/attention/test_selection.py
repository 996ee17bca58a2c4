"""Mechanisms that select keys by content: what they become when they select everything, or the same."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from transformer_jax.attention.catalogue import build
from transformer_jax.attention.contract import Geometry, Layout
from transformer_jax.attention.gates import unit
from transformer_jax.conformance.subject import agree, jit, run
from transformer_jax.errors import BadInput
from transformer_jax.measure.program import largest_array

B, T, D, N, K = 2, 37, 16, 4, 2
CLOSE = 1e-6
"""‖found − wanted‖ / ‖wanted‖ in float32: some tens of terms summed in another order, 6e-8 each."""
SEEN = 1e-3
"""A key more or less, of at most 37, changes an output by more than rounding: at least so much somewhere."""


def both(name, full="full", *, causal=True, kv_heads=K, **options):
    """The outputs of a mechanism and of full attention with the same projections."""
    g = Geometry(width=D, heads=N, kv_heads=kv_heads, length=48, causal=causal)
    mixer, other = build(name, g, rngs=nnx.Rngs(0), **options), build(full, g, rngs=nnx.Rngs(1))
    for part in ("query", "key", "value", "out"):
        getattr(other, part).kernel[...] = getattr(mixer, part).kernel[...]
    x = jnp.asarray(np.random.default_rng(2).standard_normal((B, T, D)), jnp.float32)
    return tuple(run(m, x)[0] for m in (mixer, other))


def test_moba_that_chooses_every_block_is_full_attention():
    found, wanted = both("moba", block=8, top_k=5)
    agree(found, wanted, within=CLOSE, what="outputs")
    found, wanted = both("moba", block=8, top_k=3)
    agree(found[:, :24], wanted[:, :24], within=CLOSE, what="outputs of three blocks")
    assert np.abs(found - wanted)[:, 24:].max() > SEEN


def test_moba_of_one_block_is_full_attention():
    found, wanted = both("moba", block=64)
    agree(found, wanted, within=CLOSE, what="outputs")


@pytest.mark.parametrize("causal", [True, False])
def test_top_k_that_keeps_every_key_is_full_attention(causal):
    found, wanted = both("top_k", kept=64, causal=causal)
    agree(found, wanted, within=CLOSE, what="outputs")
    found, wanted = both("top_k", kept=30, causal=causal)
    assert np.abs(found - wanted)[:, 30:].max() > SEEN


def test_top_k_never_holds_all_scores():
    length = 2048
    mixer = build("top_k", Geometry(width=8, length=length), kept=8, rngs=nnx.Rngs(0))
    loss = lambda x: jnp.sum(mixer(x, Layout.plain(1, length))[0] ** 2)
    largest = largest_array(jax.grad(loss), jax.ShapeDtypeStruct((1, length, 8), jnp.float32))
    assert largest < length**2 / 8


def test_native_sparse_that_selects_every_block_and_has_a_long_window_is_full_attention_twice():
    g = Geometry(width=D, heads=N, kv_heads=K, length=48)
    options = {"compress": 8, "stride": 4, "block": 8, "selected": 5, "window": 48}
    mixer, full = build("native_sparse", g, rngs=nnx.Rngs(0), **options), build("full", g, rngs=nnx.Rngs(1))
    layout = Layout.plain(B, T)
    streams, _ = mixer.streams(jnp.asarray(np.random.default_rng(2).standard_normal((B, T, D))), layout)
    core, whole = (jit(lambda s, m=m: m.core(s, layout, None)[0]) for m in (mixer, full))
    alone = lambda n: streams | {"gates": jnp.broadcast_to(jnp.eye(3)[n], streams["gates"].shape)}
    coarse, fine, near = (core(alone(n)) for n in range(3))
    for found, k, v in ((fine, "k", "v"), (near, "k_win", "v_win")):
        wanted = whole({"q": streams["q"], "k": streams[k], "v": streams[v]})
        agree(found, wanted, within=CLOSE, what="outputs")
    assert not coarse[:, :7].any() and coarse[:, 7].all(), "a block is seen from its last token on"
    _, values = mixer.compressed(streams["k_cmp"], streams["v_cmp"])
    agree(coarse[:, 7], jnp.repeat(values[:, 0], N // K, axis=1), within=CLOSE, what="outputs")


@pytest.mark.parametrize("options", [{"chunk": 64, "rounds": 1}, {"chunk": 19, "rounds": 3}])
def test_reformer_whose_chunks_reach_everywhere_is_softmax_attention_to_all_others(options):
    g = Geometry(width=D, heads=N, length=48, causal=False)
    mixer = build("reformer", g, buckets=4, rngs=nnx.Rngs(0), **options)
    layout = Layout.plain(B, T)
    streams, _ = mixer.streams(jnp.asarray(np.random.default_rng(2).standard_normal((B, T, D))), layout)
    q = streams["q"]
    scores = jnp.einsum("btnh,bsnh->bnts", q, q / jnp.linalg.norm(q, axis=-1, keepdims=True))
    weights = jax.nn.softmax(jnp.where(jnp.eye(T, dtype=bool)[None, None], -jnp.inf, scores))
    found = jit(lambda s: mixer.core(s, layout, None)[0])(streams)
    agree(found, jnp.einsum("bnts,bsnh->btnh", weights, streams["v"]), within=CLOSE, what="outputs")


def test_sinkhorn_of_one_block_is_full_attention():
    """Each key stands there twice."""
    found, wanted = both("sinkhorn", block=64, causal=False)
    agree(found, wanted, within=CLOSE, what="outputs")


def test_sinkhorn_that_is_sure_of_a_permutation_pairs_blocks_by_it():
    block, order = 6, np.array([2, 0, 3, 1])
    g = Geometry(width=D, heads=N, length=24, causal=False)
    mixer = build("sinkhorn", g, block=block, rngs=nnx.Rngs(0))
    layout = Layout.plain(B, 24)
    streams, _ = mixer.streams(jnp.asarray(np.random.default_rng(2).standard_normal((B, 24, D))), layout)
    sure = jnp.broadcast_to(80 * jnp.eye(4)[order][None, :, None], streams["sort"].shape)
    found = jit(lambda s: mixer.core(s, layout, None)[0])(streams | {"sort": sure})
    q, k, v = (streams[name] for name in "qkv")
    at = np.arange(24) // block
    seen = (at[:, None] == at[None]) | (order[at][:, None] == at[None])
    scores = jnp.einsum("btnh,bsnh->bnts", q, k) / q.shape[-1] ** 0.5
    weights = jax.nn.softmax(jnp.where(seen[None, None], scores, -jnp.inf))
    agree(found, jnp.einsum("bnts,bsnh->btnh", weights, v), within=CLOSE, what="outputs")


def routing(**options):
    mixer = build("routing", Geometry(width=D, heads=N, length=48, causal=False), rngs=nnx.Rngs(0), **options)
    x = jnp.asarray(np.random.default_rng(2).standard_normal((B, T, D)), jnp.float32)
    return mixer, x, mixer.streams(x, Layout.plain(B, T))[0]


def test_routing_to_clusters_that_take_every_token_is_full_attention():
    mixer, _, streams = routing(clusters=3, members=64)
    q, k, v = (streams[name] for name in "qkv")
    weights = jax.nn.softmax(jnp.einsum("btnh,bsnh->bnts", q, k) / q.shape[-1] ** 0.5)
    found = jit(lambda s: mixer.core(s, Layout.plain(B, T), None)[0])(streams)
    agree(found, jnp.einsum("bnts,bsnh->btnh", weights, v), within=CLOSE, what="outputs")


def after_a_step(mixer, x):
    mixer.renew(jnp.int32(0), jax.random.key(0), mixer.observe(x, Layout.plain(B, T)))


def test_routing_moves_centroids_to_the_queries_and_keys_nearest_to_them():
    mixer, x, streams = routing(clusters=1, decay=0.0)
    after_a_step(mixer, x)
    wanted = (streams["q"] + streams["k"]).sum(axis=(0, 1)) / 2
    agree(mixer.centroids[...][:, 0], wanted, within=CLOSE, what="centroids")
    mixer, x, _ = routing(clusters=6, members=8, decay=0.0)
    cosine = lambda: np.asarray(
        mixer.near(mixer.streams(x, Layout.plain(B, T))[0]["q"], unit(mixer.centroids[...]))
    )
    before = cosine().max(axis=1).mean()
    for _ in range(5):
        after_a_step(mixer, x)
    assert cosine().max(axis=1).mean() > before + 0.1


@pytest.mark.parametrize("options", [{"block": 0}, {"top_k": 0}])
def test_moba_refuses_what_counts_nothing(options):
    with pytest.raises(BadInput, match="give 1 or more"):
        build("moba", Geometry(width=D), rngs=nnx.Rngs(0), **options)
