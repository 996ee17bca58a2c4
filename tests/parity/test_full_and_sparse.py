"""Variants of full attention and sparse patterns against independent modules with the same weights."""

from __future__ import annotations

import pytest

pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from tests.parity.test_softmax_family import (  # noqa: E402
    SIZE,
    WIDTH,
    agree,
    give,
    give_projections,
    ours,
    randomized,
    rotation,
    sizes,
)


def test_softcap_is_that_of_gemma():
    """A low cap, so that most logits feel it."""
    from transformers.models.gemma2.modeling_gemma2 import Gemma2Attention

    config = transformers.Gemma2Config(**sizes(), attn_logit_softcapping=0.7, query_pre_attn_scalar=SIZE)
    module, mixer = randomized(Gemma2Attention(config, 1)), ours("softcap", kv_heads=2, cap=0.7)
    give_projections(mixer, module)
    agree(mixer, module, rotation(SIZE))


def test_qk_norm_is_that_of_qwen():
    from transformers.models.qwen3.modeling_qwen3 import Qwen3Attention

    module = randomized(Qwen3Attention(transformers.Qwen3Config(**sizes()), 0))
    mixer = ours("qk_norm", kv_heads=2)
    give_projections(mixer, module)
    give(mixer.query_norm.scale, module.q_norm.weight)
    give(mixer.key_norm.scale, module.k_norm.weight)
    agree(mixer, module, rotation(SIZE))


def test_partial_rotary_is_that_of_gpt_neox():
    """Its projection has q, k and v of a head side by side."""
    from transformers.models.gpt_neox.modeling_gpt_neox import GPTNeoXAttention

    config = transformers.GPTNeoXConfig(
        hidden_size=WIDTH, num_attention_heads=4, attention_bias=False, attn_implementation="eager"
    )
    module, mixer = randomized(GPTNeoXAttention(config)), ours("partial_rotary", kv_heads=4, fraction=0.5)
    parts = module.query_key_value.weight.reshape(4, 3, SIZE, WIDTH)
    for n, name in enumerate(("query", "key", "value")):
        give(getattr(mixer, name).kernel, parts[:, n].reshape(-1, WIDTH).T)
    give(mixer.out.kernel, module.dense.weight.T)
    agree(mixer, module, rotation(SIZE // 2))


def test_nope_is_a_layer_of_smollm_that_does_not_turn():
    from transformers.models.smollm3.modeling_smollm3 import SmolLM3Attention

    config = transformers.SmolLM3Config(**sizes(), no_rope_layers=[1, 0], use_sliding_window=False)
    module, mixer = randomized(SmolLM3Attention(config, 1)), ours("nope", kv_heads=2)
    give_projections(mixer, module)
    agree(mixer, module, rotation(SIZE))
