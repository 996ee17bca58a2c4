"""Mechanisms against numbers that other people's code gave: `golden/`, whose README says which code and how.

Both sides are in float64. The streams are given as that code had them, and each test turns them into ours:
what it does to them is how the conventions differ.
"""

from __future__ import annotations

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from transformer_jax.attention.catalogue import build
from transformer_jax.attention.contract import Geometry, Layout
from transformer_jax.attention.core import CoreMixer, Streams
from transformer_jax.attention.definition import by_definition
from transformer_jax.conformance.subject import jit

CLOSE = 1e-12
"""‖ours − theirs‖ / ‖theirs‖: sums in another order, some hundreds of roundings of 1e-16 at most."""


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


def golden(name: str) -> dict[str, jax.Array]:
    with np.load(Path(__file__).parent / "golden" / f"{name}.npz") as file:
        return {
            key: jnp.asarray(x, jnp.float64 if x.dtype.kind == "f" else x.dtype) for key, x in file.items()
        }


def ours(name: str, q: jax.Array, *, heads: int | None = None, causal: bool = True, **options) -> CoreMixer:
    """A mixer for streams like q (B, T, N, H), or for inputs (B, T, D) in so many heads."""
    heads = heads or q.shape[2]
    size = q.shape[3] if q.ndim == 4 else None
    width = q.shape[2] if q.ndim == 3 else heads * q.shape[3]
    kv_heads, length = options.pop("kv_heads", None), options.pop("length", q.shape[1])
    geometry = Geometry(
        width=width,
        heads=heads,
        kv_heads=kv_heads,
        head_size=options.pop("size", size),
        length=length,
        causal=causal,
        rotary=options.pop("rotary", None),
        dtype="float64",
    )
    return build(name, geometry, rngs=nnx.Rngs(0), **options)


def put(parameter, value: jax.Array) -> None:
    assert parameter[...].shape == value.shape
    parameter[...] = value.astype(parameter[...].dtype)


def close(found, wanted, tolerance: float = CLOSE) -> None:
    error = float(jnp.linalg.norm(found - wanted) / jnp.linalg.norm(wanted))
    assert error < tolerance, f"error {error:.1e}"


def both_agree(mixer: CoreMixer, streams: Streams, wanted: jax.Array, tolerance=CLOSE, change=None) -> None:
    """The definition, and the execution of a whole sequence, each after a change to o."""
    layout = Layout.plain(*wanted.shape[:2])
    for o in jit(lambda s: (by_definition(mixer, s), mixer.core(s, layout, None)[0]))(streams):
        close(change(o) if change else o, wanted, tolerance)


def layer_agrees(mixer: CoreMixer, x: jax.Array, wanted: jax.Array, tolerance: float = CLOSE) -> None:
    """A whole layer, projections included, by its definition and as it is executed."""
    layout = Layout.plain(*x.shape[:2])

    def defined(x):
        streams, _ = mixer.streams(x, layout)
        return mixer.finish(mixer.after(by_definition(mixer, streams), streams), x)

    for y in jit(lambda x: (defined(x), mixer(x, layout)[0]))(x):
        close(y, wanted, tolerance)


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
