"""Softmax attention on the splash kernel, interpreted, against the definition in float64."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests.conformance import on_shards
from transformer_jax.attention.catalogue import build, catalogue
from transformer_jax.attention.contract import Geometry, Layout
from transformer_jax.attention.core import CoreMixer
from transformer_jax.attention.definition import by_definition
from transformer_jax.attention.engines.softmax import merge
from transformer_jax.attention.engines.softmax_kernel import tiles_of
from transformer_jax.attention.engines.softmax_mixer import SoftmaxMixer
from transformer_jax.attention.engines.softmax_plan import band
from transformer_jax.conformance.subject import agree, jit
from transformer_jax.errors import BadInput
from transformer_jax.kernels.choice import executing, recording
from transformer_jax.kernels.splash import Splash, TileMask, by_distance, everything
from transformer_jax.parallel.mesh import Axes

B, N, K, H = 2, 4, 2, 16
BLOCKS = tuple(tuple(sorted({0, row // 2, row, min(row + 1, 9)})) for row in range(10))


def mixer_of(name: str, dtype: str, *, causal: bool = True, length: int, **options) -> CoreMixer:
    geometry = Geometry(width=32, heads=N, kv_heads=K, head_size=H, length=length, causal=causal, dtype=dtype)
    return build(name, geometry, rngs=nnx.Rngs(0), **options)


def streams_of(mixer: CoreMixer, length: int, dtype: str) -> dict[str, jax.Array]:
    x = jnp.asarray(np.random.default_rng(1).standard_normal((B, length, 32)), dtype)
    streams, _ = mixer.streams(x, Layout.plain(B, length))
    return {name: s.astype(dtype) for name, s in streams.items()}


def differentiated(core, streams, seen):
    """(o, gradient in the streams) of a weighted sum of o, where `seen`."""

    def total(streams):
        o = core(streams) * seen
        weights = jnp.cos(jnp.arange(o.size, dtype=jnp.float32)).reshape(o.shape)
        return jnp.sum(o.astype(jnp.promote_types(o.dtype, jnp.float32)) * weights), o

    (_, o), gradient = jax.value_and_grad(total, has_aux=True)(streams)
    return o, gradient


def by_kernel(mixer: CoreMixer, layout: Layout, streams):
    with executing(mixer.name, "interpret"), recording() as heard:
        o, _ = mixer.core(streams, layout, None)
    assert heard == {mixer.name: {"splash (interpreted)"}}
    return o


CASES = [
    ("full", True, {}),
    ("full", False, {}),
    ("sliding_window", True, {"window": 40}),
    ("sliding_window", False, {"window": 40}),
    ("block_sparse", True, {"block": 32, "blocks": BLOCKS}),
    ("block_sparse", False, {"block": 32, "blocks": BLOCKS}),
    ("softcap", True, {"cap": 0.5}),
    ("multi_head_latent", True, {}),  # keys longer than values
    ("differential", True, {}),  # two queries per head
    ("linformer", False, {"landmarks": 40}),  # keys that are not tokens
    ("nystrom", False, {"landmarks": 40}),  # nor are the queries
    ("latent", False, {"latents": 40}),
]


@pytest.mark.parametrize("name, causal, options", CASES)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_kernel_is_the_definition(name, causal, options, dtype):
    """Values and gradients, at a length that no tile divides."""
    length = 300
    mixer = mixer_of(name, dtype, causal=causal, length=length, **options)
    streams, layout = streams_of(mixer, length, dtype), Layout.plain(B, length)
    o, gradient = jit(lambda s: differentiated(partial(by_kernel, mixer, layout), s, 1.0))(streams)
    with jax.enable_x64(True):
        exact = {name: np.asarray(s, np.float64) for name, s in streams.items()}
        o_wanted, gradient_wanted = jit(lambda s: differentiated(partial(by_definition, mixer), s, 1.0))(
            exact
        )
    agree(o, o_wanted, within=mixer.tolerance[dtype], what=f"values in {dtype}")
    agree(gradient, gradient_wanted, within=2 * mixer.tolerance[dtype], what=f"gradient in {dtype} of ")


@pytest.mark.slow
@pytest.mark.parametrize("name", [n for n, mixer in catalogue().items() if issubclass(mixer, SoftmaxMixer)])
def test_every_mechanism_that_takes_the_kernel_is_its_definition(name):
    kind, length = catalogue()[name], 160
    mixer = mixer_of(name, "float32", causal=kind.capability.defined("causal"), length=length, **kind.small)
    streams, layout = streams_of(mixer, length, "float32"), Layout.plain(B, length)
    with recording() as heard, executing(name, "interpret"):
        try:
            o = jit(lambda s: mixer.core(s, layout, None)[0])(streams)
        except BadInput as refusal:
            pytest.skip(str(refusal))
    if not heard:
        pytest.skip("its core is its own")
    with jax.enable_x64(True):
        exact = {name: np.asarray(s, np.float64) for name, s in streams.items()}
        agree(o, jit(partial(by_definition, mixer))(exact), within=mixer.tolerance["float32"], what=name)


@pytest.mark.parametrize(
    "name, causal, options, packed",
    [
        *((*case, packed) for case in CASES[:4] for packed in (False, True)),
        ("linformer", False, {"landmarks": 40}, False),
        ("nystrom", False, {"landmarks": 40}, False),
    ],
)
def test_padding_and_packing_are_those_of_the_engine(name, causal, options, packed):
    length = 200
    mixer = mixer_of(name, "float32", causal=causal, length=length, **options)
    streams = streams_of(mixer, length, "float32")
    segments = jnp.asarray(np.stack([np.arange(length) // 70, np.arange(length) // 128]), jnp.int32)
    lengths = jnp.asarray([length, 33])  # of the second row not even a tile
    layout = Layout(Layout.plain(B, length).positions, segments if packed else None, lengths)
    seen = layout.valid[..., None, None]
    found = jit(lambda s: differentiated(partial(by_kernel, mixer, layout), s, seen))(streams)
    wanted = jit(lambda s: differentiated(lambda s: mixer.core(s, layout, None)[0], s, seen))(streams)
    agree(found, wanted, within=1e-5, what="with padding ")


@pytest.mark.parametrize("queries, keys", [(150, 70), (70, 150)])
def test_cross_attention_of_padded_rows_is_that_of_the_engine(queries, keys):
    rng = np.random.default_rng(0)
    x, context = (jnp.asarray(rng.standard_normal((B, n, 32)), jnp.float32) for n in (queries, keys))
    layout = Layout(Layout.plain(B, queries).positions, None, jnp.asarray([queries, 33]))

    def results(execution):
        sizes = {"width": 32, "heads": N, "kv_heads": K, "head_size": H}
        mixer = build("full", Geometry(**sizes, causal=False, execution=execution), rngs=nnx.Rngs(0))
        total = lambda x, context: jnp.sum(jnp.sin(mixer(x, layout, context=context)[0]))
        return jit(jax.value_and_grad(total, (0, 1)))(x, context)

    agree(results("interpret"), results("xla"), within=1e-5, what="of cross-attention ")


@pytest.mark.parametrize("before, after", [(None, 0), (60, 0), (130, 130), (None, None)])
def test_the_tiles_of_a_pattern_are_the_pattern(before, after):
    """Both ways to them, against the mask written out."""

    def rule(i, j):
        past = (i - j <= before) if before is not None else (i == i)
        return past & (j - i <= after) if after is not None else past & (j == j)

    tile, queries = 128, 500
    i, j = np.arange(512)[:, None], np.arange(512)[None]
    found = dense(by_distance(rule, queries, queries, tile))
    np.testing.assert_array_equal(found, rule(i, j))
    plan = band(queries, queries, before=before, after=after)
    assert plan.static
    placed = dense(tiles_of(plan, rule, False))[:queries, :queries]
    np.testing.assert_array_equal(placed, found[:queries, :queries])


def test_without_a_rule_every_tile_is_whole():
    mask = everything(64, 500)
    assert mask.tile == (128, 256) and mask.kinds.tolist() == [[TileMask.EVERY] * 2]


def dense(mask: TileMask) -> np.ndarray:
    rows, columns = mask.kinds.shape
    tile, _ = mask.tile
    at = lambda n: slice(n * tile, (n + 1) * tile)
    whole = lambda part: np.broadcast_to(part, mask.tile)
    return np.block([[whole(mask[at(r), at(c)]) for c in range(columns)] for r in range(rows)])


def test_equal_masks_are_one_to_the_caches_of_the_kernel():
    causal = lambda i, j: j <= i
    first, same = (by_distance(causal, 512, 512, 128) for _ in range(2))
    other = by_distance(lambda i, j: j < i, 512, 512, 128)
    assert first == same and hash(first) == hash(same) and first != other
    assert len(first.parts) == 1, "tiles on one diagonal are equal"


ALONE, WITH_ALL = Axes(data=1, sequence=8), Axes(data=1, fsdp=2, tensor=2, sequence=2)


@pytest.mark.parametrize(
    "name, direction, axes, options",
    [
        ("full", "causal", WITH_ALL, {}),  # a ring whose pieces are exchanged
        ("full", "bidirectional", ALONE, {}),
        ("sliding_window", "causal", WITH_ALL, {"window": 5}),  # a halo
        ("sliding_window", "bidirectional", ALONE, {"window": 10}),  # of more than a shard
        ("softcap", "causal", ALONE, {"cap": 0.5}),
        ("nystrom", "bidirectional", WITH_ALL, {}),  # landmarks ask all shards
        ("latent", "bidirectional", ALONE, {}),
    ],
)
def test_on_shards_of_a_sequence_the_kernel_is_the_engine(on_eight_devices, name, direction, axes, options):
    """Padding and packing as well: documents end within shards, and some see nothing of another."""
    assert on_eight_devices(on_shards.kernel_failure, name, direction, axes, **options) == ""


TWO = Axes(data=1, sequence=2)


@pytest.mark.parametrize(
    "name, causal, axes, length, options",
    [
        ("full", True, TWO, 1304, {}),  # tiles of a shard that are seen whole, in part and not at all
        ("full", False, TWO, 1302, {}),  # shards of odd length
        ("sliding_window", True, TWO, 1304, {"window": 300}),  # a halo that ends within a tile
        ("sliding_window", False, TWO, 1304, {"window": 300}),
        ("full", False, ALONE, 64, {"heads": 16}),  # few keys, gathered
        ("nystrom", False, TWO, 1304, {"landmarks": 40}),
    ],
)
def test_shards_of_many_tiles_and_few_keys_are_those_of_the_engine(
    on_eight_devices, name, causal, axes, length, options
):
    errors = on_eight_devices(on_shards.kernel_errors, name, causal, axes, length, **options)
    assert max(errors.values()) < 1e-5, errors


@pytest.mark.parametrize("causal", [True, False])
def test_a_ring_in_bfloat16_keeps_the_budget_of_its_mechanism(on_eight_devices, causal):
    """Each of eight parts is rounded."""
    budget = catalogue()["full"].tolerance["bfloat16"]
    errors = on_eight_devices(on_shards.kernel_errors, "full", causal, ALONE, 128, dtype="bfloat16")
    assert errors.pop("o") < budget and max(errors.values()) < 2 * budget, errors


@pytest.mark.parametrize(
    "name, length, options, says",
    [
        ("sliding_window", 48, {"window": 47}, "its window is wider than a halo may be"),
        ("full", 40, {}, "a causal ring wants shards with an even number of tokens"),
    ],
)
def test_what_a_ring_leaves_to_the_score_no_kernel_takes(on_eight_devices, name, length, options, says):
    with pytest.raises(BadInput, match=says):
        on_eight_devices(on_shards.kernel_errors, name, True, ALONE, length, **options)


@pytest.mark.quick  # it calls a private function of JAX
@pytest.mark.parametrize("soft_cap", [None, 0.5])
def test_parts_of_the_keys_merge_into_all_of_them(soft_cap):
    """Forward by the lse, backward from the results over all keys; each part by itself cannot know them."""
    length, rng = 200, np.random.default_rng(0)
    shapes = ((B, length, N, H), (B, length, K, H), (B, length, K, H), (B, length, N, H))
    q, k, v, do = (jnp.asarray(rng.standard_normal(shape), jnp.float32) for shape in shapes)

    def of(keys):
        return Splash(mask=everything(length, keys), scale=H**-0.5, soft_cap=soft_cap, interpret=True)

    parts = slice(0, 70), slice(70, length)
    o, lse = merge([of(at.stop - at.start).forward(q, k[:, at], v[:, at]) for at in parts])
    wanted, pull = jax.vjp(of(length).attention, q, k, v)
    agree(o, wanted, within=1e-6, what="o")
    found = [of(at.stop - at.start).backward(q, k[:, at], v[:, at], o, lse, do) for at in parts]
    dq = sum(part[0] for part in found)
    dk, dv = (jnp.concatenate([part[n] for part in found], axis=1) for n in (1, 2))
    agree((dq, dk, dv), pull(do), within=1e-6, what="gradient ")
