"""Recurrences and convolutions against numbers that other people's code gave (`golden/`)."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.parity.recorded import both_agree, golden, layer_agrees, ours, put
from transformer_jax.attention.contract import Layout


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


def test_gated_linear_attention():
    """Theirs divides q by √H."""
    g = golden("gated_linear_attention")
    streams = {"q": g["q"] / 2, "k": g["k"], "v": g["v"], "log_decay": g["gk"]}
    both_agree(ours("gated_linear_attention", g["q"]), streams, g["o"])


def test_delta_product():
    g = golden("delta_product")
    both_agree(
        ours("delta_product", g["q"], steps=2), {name: g[name] for name in ("q", "k", "v", "beta")}, g["o"]
    )


def test_log_linear():
    g = golden("log_linear")
    mixer = ours("log_linear", g["q"], state_size=4)
    ones = jnp.ones_like(g["g"])
    streams = {name: g[name] for name in "qkv"} | {"dt": ones, "skip": 0 * ones}
    both_agree(mixer, streams | {"log_decay": g["g"], "weight": g["level_scales"]}, g["o"])


def test_hgrn2():
    """Theirs divides q by √H, which the norm undoes but for its ε: a quarter of it, for H = 4."""
    g = golden("hgrn2")
    mixer = ours("hgrn2", g["x"], heads=2, lower_bound=0.25)
    for layer, name in ((mixer.query, "q"), (mixer.key, "f"), (mixer.value, "i"), (mixer.out, "o")):
        put(layer.kernel, g[f"{name}_proj.weight"].T)
    put(mixer.norm.scale, g["g_norm.weight"])
    mixer.norm.epsilon = 4e-5
    layer_agrees(mixer, g["x"], g["y"])


def test_rwkv7():
    """The ε of their norm is that of heads of 64. Ours adds 1e-6 to |κ|² before it divides by |κ|; theirs
    nothing, which sets the tolerance."""
    g = golden("rwkv7")
    mixer = ours("rwkv7", g["x"], heads=2, rank=3)
    put(mixer.shift, jnp.stack([g[f"m{name}"] for name in "rkvwag"]))
    for layer, name in ((mixer.query, "r"), (mixer.key, "k"), (mixer.value, "v"), (mixer.out, "o")):
        put(layer.kernel, g[f"W{name}"].T)
    for layer, name in (("decay", "w"), ("rate", "a"), ("gate", "g")):
        put(getattr(mixer, f"{layer}_down").kernel, g[f"W{name}1"])
        put(getattr(mixer, f"{layer}_up").kernel, g[f"W{name}2"])
    put(mixer.decay_up.bias, g["w_bias"])
    put(mixer.rate_up.bias, g["a_bias"])
    put(mixer.removal, g["k_k"])
    put(mixer.replacement, g["k_a"])
    put(mixer.bonus, g["r_k"])
    put(mixer.norm_scale, g["ln_w"].reshape(2, 4))
    put(mixer.norm_bias, g["ln_b"].reshape(2, 4))
    mixer.norm.epsilon = 64e-5
    layer_agrees(mixer, g["x"], g["y"], 1e-5)


def test_retention():
    """Before the norm of the heads, up to a factor of each row, which that norm undoes. Theirs turns
    neighbouring channels, by angles from 1 to 1/10000: a base of 10000^(H/(H − 2))."""
    g = golden("retention")
    size = 6
    mixer = ours("retention", g["x"], heads=2, rotary=10_000.0 ** (size / (size - 2)))
    halves = np.array([[*range(n, n + size, 2), *range(n + 1, n + size, 2)] for n in (0, size)]).ravel()
    put(mixer.query.kernel, g["q_proj.weight"][halves].T)
    put(mixer.key.kernel, g["k_proj.weight"][halves].T)
    put(mixer.value.kernel, g["v_proj.weight"].T)
    streams, _ = mixer.streams(g["x"], Layout.plain(*g["x"].shape[:2]))
    unit = lambda o: o / jnp.linalg.norm(o, axis=-1, keepdims=True)
    both_agree(mixer, streams, unit(g["o"]), change=unit)


@pytest.mark.parametrize("causal", [True, False])
def test_performer(causal):
    g = golden("performer")
    mixer = ours("performer", g["q"], causal=causal, features=6)
    put(mixer.projections, g["projection_matrix"])
    both_agree(mixer, {name: g[name] for name in "qkv"}, g["o_causal" if causal else "o"])


def test_performer_trigonometric():
    g = golden("performer_trigonometric")
    mixer = ours("performer_trigonometric", g["q"], causal=False, features=6)
    put(mixer.projections, g["projection_matrix"])
    both_agree(mixer, {name: g[name] for name in "qkv"}, g["o"])


def test_rfa():
    """Theirs adds 1e-3 to the lengths by which it divides q and k."""
    g = golden("rfa")
    mixer = ours("rfa", g["q"], features=6)
    put(mixer.projections, g["random_matrices"])
    put(mixer.sigma, g["sigma"][:, 0])
    short = lambda x: x / (jnp.linalg.norm(x, axis=-1, keepdims=True) + 1e-3)
    both_agree(mixer, {"q": short(g["q"]), "k": short(g["k"]), "v": g["v"]}, g["o"])


@pytest.mark.parametrize("causal", [True, False])
def test_cosformer(causal):
    g = golden("cosformer")
    mixer = ours("cosformer", g["x"], heads=2, causal=causal)
    for name in ("query", "key", "value"):
        put(getattr(mixer, name).kernel, g[f"{name[0]}_proj.weight"].T)
    put(mixer.out.kernel, jnp.eye(8))
    layer_agrees(mixer, g["x"], g["y_causal" if causal else "y"])


def test_dpfp():
    """The weights of all keys for a query; theirs pairs a channel with the ν before it, the same products."""
    g = golden("dpfp")
    mixer = ours("dpfp", g["q"][None, :, None], causal=False, nu=2)
    every = jnp.eye(len(g["k"]))[None, :, None]
    both_agree(
        mixer, {"q": g["q"][None, :, None], "k": g["k"][None, :, None], "v": every}, g["A"][None, :, None]
    )


def test_hedgehog():
    """Theirs doubles the output of the layer and divides φ(k) by its sum over features, here done to v and to
    the sum of weights, to which theirs adds 1e-12."""
    g = golden("hedgehog")
    q, k = (2 * (g[name] @ g["weight"].T + g["bias"][None, None, None]) for name in "qk")
    sums = (2 * jnp.cosh(k)).sum(axis=-1, keepdims=True)
    v = jnp.concatenate([g["v"] / sums, 1 / sums], axis=-1)
    mixer, streams = ours("hedgehog", q), {"q": q, "k": k, "v": v}
    both_agree(mixer, streams, g["o"], 1e-10, change=lambda o: o[..., :-1] / o[..., -1:])


@pytest.mark.parametrize("name, out", [("based_taylor", "out_proj"), ("rebased", "proj_o")])
def test_based(name, out):
    """ReBased's code adds 1e-12 to the sum of weights."""
    g = golden(name)
    mixer = ours(name, g["x"], heads=2, feature_size=3)
    for layer in ("query", "key", "value"):
        put(getattr(mixer, layer).kernel, g[f"proj_{layer[0]}.weight"].T)
    put(mixer.out.kernel, g[f"{out}.weight"].T)
    if name == "rebased":
        for norm, letter in ((mixer.query_norm, "q"), (mixer.key_norm, "k")):
            put(norm.scale, g[f"ln_{letter}.weight"])
            put(norm.bias, g[f"ln_{letter}.bias"])
    layer_agrees(mixer, g["x"], g["y"], 1e-10)


def test_hyena():
    g = golden("hyena")
    mixer = ours("hyena", g["x"], heads=1, bands=2, filter_width=6)
    put(mixer.inputs.kernel, g["in_proj.weight"].T)
    put(mixer.out.kernel, g["out_proj.weight"].T)
    put(mixer.short.kernel, g["short_filter.weight"][:, 0].T)
    for n, layer in enumerate((mixer.first, mixer.second, mixer.third)):
        put(layer.kernel, g[f"filter_fn.implicit_filter.{2 * n}.weight"].T)
        put(layer.bias, g[f"filter_fn.implicit_filter.{2 * n}.bias"])
    put(mixer.last.kernel, g["filter_fn.implicit_filter.6.weight"].T)
    put(mixer.frequency, g["filter_fn.implicit_filter.1.freq"][0])
    put(mixer.skip, g["filter_fn.bias"])
    layer_agrees(mixer, g["x"], g["y"])


def test_h3():
    """Held exactly between steps, as their code can be told to. Their D of the shift is its first tap, and
    their channels leave as (part, head), which their last layer undoes."""
    g = golden("h3")
    mixer = ours("h3", g["x"], heads=1, part=2, state_size=6, taps=6)
    for name in ("query", "key", "value"):
        put(getattr(mixer, name).kernel, g[f"{name[0]}_proj.weight"].T)
    put(mixer.out.kernel, g["output_linear.weight"].reshape(8, 2, 4).transpose(0, 2, 1).reshape(8, 8).T)
    taps = g["ssm_k_kernel.kernel.C"][0].at[:, 0].add(g["ssm_k_D"])
    put(mixer.shift.kernel, taps.T[::-1])
    B, C = (x[..., 0] + 1j * x[..., 1] for x in (g["kernel.kernel.B"], g["kernel.kernel.C"][0]))
    put(mixer.C_real, jnp.real(B * C))
    put(mixer.C_imaginary, jnp.imag(B * C))
    put(mixer.log_dt, g["kernel.kernel.log_dt"])
    put(mixer.log_rate, g["kernel.kernel.inv_A_real"])
    put(mixer.frequency, g["kernel.kernel.A_imag"])
    put(mixer.skip, g["D"])
    layer_agrees(mixer, g["x"], g["y"])


@pytest.mark.parametrize("causal", [True, False])
def test_linear(causal):
    g = golden("linear")
    mixer = ours("linear", g["q"], causal=causal)
    both_agree(mixer, {name: g[name] for name in "qkv"}, g["o_causal" if causal else "o"])


def test_relu_linear():
    """Theirs adds 1e-15 to the sum of weights."""
    g = golden("relu_linear")
    both_agree(ours("relu_linear", g["q"], causal=False), {name: g[name] for name in "qkv"}, g["o"])


def test_efficient():
    g = golden("efficient")
    mixer = ours("efficient", g["x"], heads=2, causal=False)
    for layer, name in (("query", "queries"), ("key", "keys"), ("value", "values"), ("out", "reprojection")):
        put(getattr(mixer, layer).kernel, g[f"{name}.weight"].T)
    layer_agrees(mixer, g["x"], g["y"])


def test_rfa_gated():
    """Sum and normalizer from one scalar-gated recurrence on the authors' features. Theirs adds 1e-3 to the
    lengths by which it divides q and k."""
    g = golden("rfa_gated")
    mixer = ours("rfa_gated", g["q"], features=6)
    put(mixer.projections, g["random_matrices"])
    put(mixer.sigma, g["sigma"][:, 0])
    short = lambda x: x / (jnp.linalg.norm(x, axis=-1, keepdims=True) + 1e-3)
    streams = {"q": short(g["q"]), "k": short(g["k"]), "v": g["v"], "gate": g["gate"]}
    both_agree(mixer, streams, g["o"], 1e-10)  # where the normalizer is near 0


@pytest.mark.parametrize("candidate, y", [("positive", "y"), ("linear", "y_linear")])
def test_min_gru(candidate, y):
    """Theirs has hidden and gate in one matrix, no biases and here no last projection."""
    g = golden("min_gru")
    mixer = ours("min_gru", g["x"], heads=1, candidate=candidate)
    hidden, gate = jnp.split(g["to_hidden_and_gate.weight"], 2)
    put(mixer.hidden.kernel, hidden.T)
    put(mixer.update.kernel, gate.T)
    put(mixer.out.kernel, jnp.eye(6))
    layer_agrees(mixer, g["x"], g[y])
