"""Softmax attention and landmarks against numbers that other people's code gave (`golden/`)."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.parity.recorded import both_agree, close, golden, layer_agrees, ours, put
from transformer_jax.attention.contract import Layout


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


def test_native_sparse():
    """Blocks are compressed to their means, without overlap. One key and one value serve all three parts."""
    g = golden("native_sparse")
    q, k, v = g["q"], g["k"], g["v"]
    mixer = ours("native_sparse", q, kv_heads=1, compress=4, stride=4, block=4, selected=4, window=5)
    mixer.phi_k = mixer.phi_v = lambda blocks: blocks.mean(axis=-2)
    streams = {
        "q": q,
        "group": q[:, :, None],
        "gates": jnp.stack([g["g_cmp"], g["g_slc"], g["g_swa"]], axis=3),
    }
    streams |= {f"k{part}": k for part in ("", "_cmp", "_win")} | {
        f"v{part}": v for part in ("", "_cmp", "_win")
    }
    chosen = mixer.selection(streams, Layout.plain(*q.shape[:2]))["chosen"]
    np.testing.assert_array_equal(np.sort(chosen), np.sort(g["block_indices"]))
    both_agree(mixer, streams, g["o"], 1e-6)  # kept in float32


def test_moba():
    g = {name: x[None] for name, x in golden("moba").items()}
    both_agree(ours("moba", g["q"], block=4, top_k=3), {name: g[name] for name in "qkv"}, g["o"])


@pytest.mark.parametrize("causal", [True, False])
def test_top_k(causal):
    """Where a causal row sees fewer than k keys, theirs takes masked ones too, whose weight is 0."""
    g = golden("top_k")
    mixer = ours("top_k", g["q"], causal=causal, kept=3)
    both_agree(mixer, {name: g[name] for name in "qkv"}, g["o_causal" if causal else "o"])


def test_sinkhorn():
    """Theirs starts from R^(1/τ), ours from e^(R/τ), as the paper has it; and sorts the keys in the place of
    the values, which are the same here."""
    g = golden("sinkhorn")
    mixer = ours("sinkhorn", g["q"], causal=False, block=3, iterations=5)
    sort = jnp.log(g["R"] + 1e-6).transpose(0, 2, 1, 3)
    both_agree(mixer, {"q": g["q"], "k": g["kv"], "v": g["kv"], "sort": sort}, g["o"])


def test_routing():
    g = golden("routing")
    mixer = ours("routing", g["q"], causal=False, clusters=3, members=6)
    put(mixer.centroids, g["means"])
    both_agree(mixer, {name: g[name] for name in "qkv"}, g["o"])


def test_forgetting():
    g = golden("forgetting")
    c = jnp.cumsum(g["g"], axis=1)
    streams = {name: g[name] for name in "qkv"} | {"c": c, "rest": jnp.zeros_like(c)}
    both_agree(ours("forgetting", g["q"]), streams, g["o"])


def test_synthesizer_dense():
    g = golden("synthesizer_dense")
    mixer = ours("synthesizer_dense", g["x"], heads=1, length=12, size=4, hidden=5)
    put(mixer.first.kernel, g["w_1.weight"].T)
    put(mixer.first.bias, g["w_1.bias"])
    put(mixer.second, g["w_2.weight"][:, None])
    put(mixer.bias, g["w_2.bias"][:, None, None])
    streams, _ = mixer.streams(g["x"], Layout.plain(*g["x"].shape[:2]))
    both_agree(mixer, streams | {"v": g["v"][:, :, None]}, g["o"][:, :, None])


def test_synthesizer_random():
    g = golden("synthesizer_random")
    mixer = ours("synthesizer_random", g["v"], length=12)
    put(mixer.R, g["random_attn"][0])
    both_agree(mixer, {"v": g["v"]}, g["o"])


def test_aft_full():
    """Position biases without factors: one factor is the identity."""
    g = golden("aft_full")
    length = g["x"].shape[1]
    mixer = ours("aft_full", g["x"], heads=1, size=6, causal=False, factors=length)
    for name in ("query", "key", "value"):
        put(getattr(mixer, name).kernel, g[f"to_{name[0]}.weight"].T)
    put(mixer.u, g["wbias"])
    put(mixer.r, jnp.eye(length))
    streams, _ = mixer.streams(g["x"], Layout.plain(1, length))
    both_agree(mixer, streams, g["y"][..., None])


@pytest.mark.parametrize(
    "name, options", [("strided", {"stride": 5}), ("fixed", {"stride": 6, "summary": 2})]
)
def test_sparse_transformer(name, options):
    """One softmax over the union of the authors' two sets, of tokens and not of blocks."""
    g = golden("sparse_transformer")
    both_agree(ours(name, g["q"], **options), {name: g[name] for name in "qkv"}, g[f"o_{name}"])


def test_sinks_and_window():
    """Token by token from the authors' cache, without positions."""
    g = golden("sinks_and_window")
    mixer = ours("sinks_and_window", g["q"], sinks=2, window=5)
    both_agree(mixer, {name: g[name] for name in "qkv"}, g["o"])


@pytest.mark.parametrize("context", [None, "context"])
def test_linformer(context):
    """A sequence shorter than the model's uses the first rows of its projections, here and there."""
    g = golden("linformer")
    mixer = ours("linformer", g["x"], heads=2, causal=False, length=13, landmarks=5)
    for layer, name in ((mixer.query, "q"), (mixer.key, "k"), (mixer.value, "v"), (mixer.out, "out")):
        put(layer.kernel, g[f"to_{name}.weight"].T)
    put(mixer.E, g["proj_k"])
    put(mixer.F, g["proj_v"])
    if context is None:
        layer_agrees(mixer, g["x"], g["y"])
    else:
        layout = Layout.plain(*g["x"].shape[:2])
        close(mixer(g["x"], layout, None, g["context"])[0], g["y_cross"])
