"""The model: independent witnesses, equal executions, and the sizes that it claims."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from transformer_jax.attention import catalogue
from transformer_jax.attention.contract import Geometry, Layout
from transformer_jax.errors import BadInput
from transformer_jax.measure.flops import count_flops
from transformer_jax.model.config import Transformer, mechanism
from transformer_jax.model.transformer import Model

FULL = mechanism("full")
HYBRID = (mechanism("gated_delta_net"), mechanism("sliding_window", window=5))


def model(causal=True, target="token", outputs=13, length=32, seed=0, **config) -> Model:
    config = {"width": 16, "heads": 2} | config
    return Model(
        Transformer(**config),
        vocabulary=13,
        outputs=outputs,
        target=target,
        causal=causal,
        length=length,
        rngs=nnx.Rngs(seed),
    )


def logits_of(m: Model, x, **call):
    """One compiled call; operation by operation the tests would spend their time compiling."""
    return jax.jit(lambda x, call: m(x, **call)[0])(x, call)


def tokens(batch=2, length=20, seed=0):
    return jnp.asarray(np.random.default_rng(seed).integers(0, 13, (batch, length)), jnp.int32)


@pytest.mark.quick
@pytest.mark.parametrize("causal", [True, False])
def test_full_equals_flax_multi_head_attention(causal):
    """With the same weights, `full` is Flax's own multi-head attention."""
    g = Geometry(width=16, heads=4, length=12, causal=causal)
    ours = catalogue.build("full", g, rngs=nnx.Rngs(0))
    theirs = nnx.MultiHeadAttention(4, 16, use_bias=False, decode=False, rngs=nnx.Rngs(1))
    for name in ("query", "key", "value"):
        getattr(theirs, name).kernel[...] = getattr(ours, name).kernel[...].reshape(16, 4, 4)
    theirs.out.kernel[...] = ours.out.kernel[...].reshape(4, 4, 16)
    x = jax.random.normal(jax.random.key(2), (2, 12, 16))
    mask = nnx.make_causal_mask(jnp.ones((2, 12))) if causal else None
    with jax.numpy_rank_promotion("allow"):
        wanted = theirs(x, mask=mask)
    np.testing.assert_allclose(ours(x, Layout.plain(2, 12))[0], wanted, atol=2e-6)


@pytest.mark.parametrize(
    ("mixers", "positions"),
    [
        ((FULL,), "none"),
        ((FULL,), "sinusoidal"),
        ((FULL,), "learned"),
        ((FULL,), "rotary"),
        (HYBRID, "rotary"),
    ],
)
def test_decoding_equals_training(mixers, positions):
    """Logits of prefill and of single steps are those of the whole sequence."""
    m = model(
        mixers=mixers, layers=2 * len(mixers), positions=positions, convolution=3, mlp="swiglu", norm="rms"
    )
    x = tokens()
    wanted = logits_of(m, x)
    step = jax.jit(lambda x, state: m(x, state=state))
    logits, state = step(x[:, :11], m.init_state(2))
    pieces = [logits]
    for t in range(11, 20):
        logits, state = step(x[:, t : t + 1], state)
        pieces.append(logits)
    np.testing.assert_allclose(jnp.concatenate(pieces, 1), wanted, atol=3e-5)


def test_packed_documents_equal_separate_ones():
    m = model(mixers=HYBRID, positions="learned", convolution=3)
    x = tokens(1, 20)
    segments = jnp.asarray(np.repeat([0, 1], (8, 12)))[None]
    packed = logits_of(m, x, segments=segments)
    np.testing.assert_allclose(packed[:, :8], logits_of(m, x[:, :8]), atol=3e-5)
    np.testing.assert_allclose(packed[:, 8:], logits_of(m, x[:, 8:]), atol=3e-5)


@pytest.mark.parametrize("pooling", ["mean", "first"])
@pytest.mark.parametrize("norm_position", ["pre", "post"])
def test_an_encoder_ignores_padding(pooling, norm_position):
    m = model(causal=False, target="sequence", outputs=3, pooling=pooling, norm_position=norm_position)
    x = tokens(3, 20)
    logits = logits_of(m, x, lengths=jnp.array([20, 7, 0]))
    assert logits.shape == (3, 3) and np.isfinite(logits).all()
    np.testing.assert_allclose(logits[1:2], logits_of(m, x[1:2, :7]), atol=3e-5)


def test_a_classifier_may_have_a_hidden_layer():
    """Its logits are those of the vector that the linear one reads, through two matrices and a ReLU."""
    x = tokens(2, 20)
    encoder = partial(model, causal=False, target="sequence", mlp_ratio=1.0, embeddings="untied")
    linear, mlp = encoder(outputs=16), encoder(outputs=3, classifier="mlp")
    linear.head.kernel[...] = jnp.eye(16)
    hidden = jax.nn.relu(logits_of(linear, x) @ mlp.classifier.kernel[...])  # its biases begin at zero
    np.testing.assert_allclose(logits_of(mlp, x), hidden @ mlp.head.kernel[...], atol=1e-6)


def gradients(m, x, **call):
    graph, learned, rest = nnx.split(m, nnx.Param, ...)
    loss = lambda learned: jnp.mean(jnp.sin(nnx.merge(graph, learned, rest)(x, **call)[0]))
    return jax.jit(jax.grad(loss))(learned)


@pytest.mark.parametrize("remat", ["full", "dots", "projections"])
def test_rematerialization_changes_no_gradient(remat):
    x, key = tokens(), jax.random.key(3)
    kept = gradients(model(layers=3, dropout=0.1, remat="none"), x, dropout=key)
    recomputed = gradients(model(layers=3, dropout=0.1, remat=remat), x, dropout=key)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), kept, recomputed)


def test_only_full_rematerialization_repeats_products_with_parameters():
    """Those of queries, keys and values the engine of full attention repeats under any policy."""

    def products(remat):
        graph, learned, rest = nnx.split(model(layers=3, remat=remat), nnx.Param, ...)
        return count_flops(jax.grad(lambda p: nnx.merge(graph, p, rest)(tokens())[0].sum()), learned)

    none, dots, projections, full = map(products, ("none", "dots", "projections", "full"))
    assert none <= dots <= projections < full
    # Of 2 × 20 tokens: four projections and the first of the MLP; nothing needs the result of the second.
    assert full - projections == 3 * 2 * 40 * (4 * 16 * 16 + 16 * 64)


def test_depth_costs_no_program_size():
    """Layers run in one scan: the program of 12 layers is as long as that of 4."""
    lines = [
        len(str(jax.make_jaxpr(lambda x, m=m: m(x)[0])(tokens())).splitlines()) for m in map(deep, (4, 12))
    ]
    assert lines[0] == lines[1]


def deep(layers):
    return model(layers=layers)


def test_bfloat16_computes_on_float32_parameters():
    m = model(compute="bfloat16", mlp="swiglu")
    assert {leaf.dtype for leaf in jax.tree.leaves(nnx.state(m, nnx.Param))} == {jnp.dtype("float32")}
    logits = logits_of(m, tokens())
    assert logits.dtype == jnp.float32
    assert (logits != logits.astype(jnp.bfloat16)).any(), "logits are rounded to bfloat16"
    reference = logits_of(model(compute="float32", mlp="swiglu"), tokens())
    assert 0 < np.abs(logits - reference).max() < 0.1
    assert {g.dtype for g in jax.tree.leaves(gradients(m, tokens()))} == {jnp.dtype("float32")}


def test_dropout_follows_its_key():
    m = model(dropout=0.5)
    drop = jax.jit(lambda key: m(tokens(), dropout=key)[0])
    np.testing.assert_array_equal(drop(jax.random.key(0)), drop(jax.random.key(0)))
    assert np.abs(drop(jax.random.key(0)) - drop(jax.random.key(1))).max() > 1e-3
    # Off, it changes nothing: the same weights without dropout.
    np.testing.assert_array_equal(logits_of(m, tokens()), logits_of(model(dropout=0.0), tokens()))


@pytest.mark.quick
def test_parameters_are_counted_as_the_formula_says():
    """GPT-2's layout without attention biases: 12 D² and the vectors of each block, and the embeddings."""
    d, layers, vocabulary, length = 16, 3, 13, 32
    m = model(layers=layers, positions="learned")
    vectors = 4 * d + d  # two norms with bias; biases of the MLP are 4D and D, counted below
    block = 12 * d * d + vectors + 4 * d
    assert m.parameters() == vocabulary * d + length * d + layers * block + 2 * d
    untied = model(layers=layers, embeddings="untied")
    assert untied.parameters() == m.parameters() + vocabulary * d


def test_state_is_as_large_as_the_caches():
    """A KV cache holds 2·K·H numbers per token and layer; a matrix state does not grow."""
    assert model(layers=2, heads=2, kv_heads=1, length=32).state_size() == 2 * 2 * 8 * 32
    constant = [model(mixers=(mechanism("linear"),), length=n).state_size() for n in (16, 64)]
    assert constant[0] == constant[1]
    assert model(mixers=(mechanism("linformer", landmarks=4),), causal=False).state_size() is None


@pytest.mark.quick
@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"layers": 3, "mixers": (FULL, FULL)}, "multiple of the pattern"),
        ({"heads": 3}, "multiple of the heads"),
        ({"heads": 4, "kv_heads": 3}, "not a multiple of kv_heads"),
        ({"mlp": "gleu"}, "did you mean 'gelu'"),
        ({"dropout": 1.0}, "below 1"),
        ({"kv_heads": 0}, "at least 1"),
        ({"head_size": -4}, "at least 1"),
        ({"mlp_ratio": 0.0}, "above 0"),
        ({"positions": "rotary", "head_size": 3}, "must be even"),
    ],
)
def test_bad_configurations_are_refused_in_a_sentence(config, said):
    with pytest.raises(BadInput, match=said):
        model(**config)


@pytest.mark.quick
def test_bad_mechanisms_are_refused_in_a_sentence():
    with pytest.raises(BadInput, match="did you mean 'linear'"):
        mechanism("linaer")
    with pytest.raises(BadInput, match="did you mean 'window'"):
        mechanism("sliding_window", windw=3)
    with pytest.raises(BadInput, match="takes a whole number"):
        mechanism("sliding_window", window="wide")
    with pytest.raises(BadInput, match="not defined for causal"):
        model(mixers=(mechanism("linformer"),))
    with pytest.raises(BadInput, match="outside the vocabulary"):
        model().check_tokens(np.array([[1, 13]]))
    with pytest.raises(BadInput, match="exceeds the model's length"):
        model(length=8)(tokens())
