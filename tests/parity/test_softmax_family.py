"""Mechanisms against independent modules with the same weights: those of `transformers`, on PyTorch.

Both sides compute in float32 with sums of other orders, which leaves some 1e-6 of values near 1.
"""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from transformer_jax.attention.catalogue import build
from transformer_jax.attention.contract import Geometry, Layout
from transformer_jax.attention.variants.alibi import slopes

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

WIDTH, HEADS, SIZE, LENGTH, BASE = 32, 4, 8, 19, 10_000.0


def causal_mask():
    return torch.full((LENGTH, LENGTH), float("-inf")).triu(1)[None, None]


def rotation(size):
    """cos and sin (1, T, size) of the rotary embedding, as the modules of `transformers` take them."""
    rates = BASE ** (-np.arange(0, size, 2) / size)
    angles = np.tile(np.arange(LENGTH)[:, None] * rates, 2)[None]
    return tuple(torch.tensor(f(angles), dtype=torch.float32) for f in (np.cos, np.sin))


def randomized(module):
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_(0, 0.3)
    return module.eval()


def ours(name, *, heads=HEADS, kv_heads, size=SIZE, rotary=BASE, causal=True, **options):
    sizes = {"width": WIDTH, "heads": heads, "kv_heads": kv_heads, "head_size": size, "length": 32}
    g = Geometry(**sizes, rotary=rotary, causal=causal)
    return build(name, g, rngs=nnx.Rngs(0), **options)


def give(parameter, tensor):
    value = jnp.asarray(tensor.detach().numpy())
    assert parameter[...].shape == value.shape
    parameter[...] = value


def give_projections(mixer, module):
    for mine, its in (("query", "q_proj"), ("key", "k_proj"), ("value", "v_proj"), ("out", "o_proj")):
        give(getattr(mixer, mine).kernel, getattr(module, its).weight.T)


def agree(mixer, module, turns):
    """`turns`: cos and sin as the module takes them."""
    x = np.random.default_rng(1).standard_normal((2, LENGTH, WIDTH)).astype(np.float32)
    with torch.no_grad():
        wanted = module(torch.tensor(x), position_embeddings=turns, attention_mask=causal_mask())[0].numpy()
    found, _ = mixer(jnp.asarray(x), Layout.plain(2, LENGTH))
    np.testing.assert_allclose(found, wanted, atol=2e-5 * np.abs(wanted).max())


def sizes(kv_heads=2):
    return {
        "hidden_size": WIDTH,
        "num_attention_heads": HEADS,
        "num_key_value_heads": kv_heads,
        "head_dim": SIZE,
        "attn_implementation": "eager",
        "attention_dropout": 0.0,
        "num_hidden_layers": 2,
    }


def test_sink_is_that_of_gpt_oss():
    from transformers.models.gpt_oss.modeling_gpt_oss import GptOssAttention

    config = transformers.GptOssConfig(**sizes(), attention_bias=False, layer_types=["full_attention"] * 2)
    module, mixer = randomized(GptOssAttention(config, 0)), ours("sink", kv_heads=2)
    give_projections(mixer, module)
    give(mixer.sinks, module.sinks)
    agree(mixer, module, tuple(x[..., : SIZE // 2] for x in rotation(SIZE)))  # it takes each angle once


def test_differential_is_that_of_diffllama():
    """Its head n pairs heads n and N + n of the projections; its norm has no learned scale."""
    from transformers.models.diffllama.modeling_diffllama import DiffLlamaAttention

    config = transformers.DiffLlamaConfig(**sizes(), rms_norm_eps=1e-5)
    module = randomized(DiffLlamaAttention(config, 1))
    mixer = ours("differential", heads=2, kv_heads=1, size=2 * SIZE, initial=module.lambda_init)

    def paired(weight):  # (2·heads·SIZE, WIDTH): heads n and N + n side by side
        return weight.reshape(2, -1, SIZE, WIDTH).transpose(0, 1).reshape(-1, WIDTH)

    for mine, its in (("query", "q_proj"), ("key", "k_proj"), ("value", "v_proj")):
        give(getattr(mixer, mine).kernel, paired(getattr(module, its).weight).T)
    give(mixer.out.kernel, module.o_proj.weight.T)
    for name in ("lambda_q1", "lambda_k1", "lambda_q2", "lambda_k2"):
        give(getattr(mixer, name), getattr(module, name))
    agree(mixer, module, rotation(SIZE))


@pytest.mark.parametrize("heads", [1, 4, 8, 6, 12])
def test_slopes_of_alibi_are_those_of_bloom(heads):
    from transformers.models.bloom.modeling_bloom import build_alibi_tensor

    bias = build_alibi_tensor(torch.ones(1, 3), heads, torch.float32)[:, 0]
    np.testing.assert_allclose(slopes(heads), bias[:, 1], rtol=1e-6)
