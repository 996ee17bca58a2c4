"""Mechanisms against independent modules with the same weights: those of `transformers`, on PyTorch."""

from __future__ import annotations

import numpy as np
import pytest

from tests.parity.witness import (
    WIDTH,
    H,
    attends_alike,
    attention_sizes,
    numpy,
    our_attention,
    put,
    put_linear,
    put_projections,
    randomized,
    rotation,
)
from transformer_jax.attention.variants.alibi import slopes

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")


def test_sink_is_that_of_gpt_oss():
    from transformers.models.gpt_oss.modeling_gpt_oss import GptOssAttention

    config = transformers.GptOssConfig(
        **attention_sizes(), attention_bias=False, layer_types=["full_attention"] * 2
    )
    module, mixer = randomized(GptOssAttention(config, 0)), our_attention("sink", kv_heads=2)
    put_projections(mixer, module)
    put(mixer.sinks, numpy(module.sinks))
    attends_alike(mixer, module, tuple(x[..., : H // 2] for x in rotation(H)))  # it takes each angle once


def test_differential_is_that_of_diffllama():
    """Its head n pairs heads n and N + n of the projections; its norm has no learned scale."""
    from transformers.models.diffllama.modeling_diffllama import DiffLlamaAttention

    config = transformers.DiffLlamaConfig(**attention_sizes(), rms_norm_eps=1e-5)
    module = randomized(DiffLlamaAttention(config, 1))
    mixer = our_attention("differential", heads=2, kv_heads=1, size=2 * H, initial=module.lambda_init)

    def paired(weight):  # (2·heads·H, WIDTH): heads n and N + n side by side
        return weight.reshape(2, -1, H, WIDTH).transpose(0, 1).reshape(-1, WIDTH)

    for mine, its in (("query", "q_proj"), ("key", "k_proj"), ("value", "v_proj")):
        put_linear(getattr(mixer, mine), paired(getattr(module, its).weight))
    put_linear(mixer.out, module.o_proj.weight)
    for name in ("lambda_q1", "lambda_k1", "lambda_q2", "lambda_k2"):
        put(getattr(mixer, name), numpy(getattr(module, name)))
    attends_alike(mixer, module, rotation(H))


@pytest.mark.parametrize("heads", [1, 4, 8, 6, 12])
def test_slopes_of_alibi_are_those_of_bloom(heads):
    from transformers.models.bloom.modeling_bloom import build_alibi_tensor

    bias = build_alibi_tensor(torch.ones(1, 3), heads, torch.float32)[:, 0]
    np.testing.assert_allclose(slopes(heads), bias[:, 1], rtol=1e-6)
