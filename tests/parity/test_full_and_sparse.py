"""Variants of full attention and sparse patterns against independent modules with the same weights."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

from tests.parity.witness import (
    HEADS,
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
from transformer_jax.attention.contract import Layout

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")


def test_softcap_is_that_of_gemma():
    """A low cap, so that most logits feel it."""
    from transformers.models.gemma2.modeling_gemma2 import Gemma2Attention

    config = transformers.Gemma2Config(
        **attention_sizes(), attn_logit_softcapping=0.7, query_pre_attn_scalar=H
    )
    module, mixer = randomized(Gemma2Attention(config, 1)), our_attention("softcap", kv_heads=2, cap=0.7)
    put_projections(mixer, module)
    attends_alike(mixer, module, rotation(H))


def test_qk_norm_is_that_of_qwen():
    from transformers.models.qwen3.modeling_qwen3 import Qwen3Attention

    module = randomized(Qwen3Attention(transformers.Qwen3Config(**attention_sizes()), 0))
    mixer = our_attention("qk_norm", kv_heads=2)
    put_projections(mixer, module)
    put(mixer.query_norm.scale, numpy(module.q_norm.weight))
    put(mixer.key_norm.scale, numpy(module.k_norm.weight))
    attends_alike(mixer, module, rotation(H))


def test_partial_rotary_is_that_of_gpt_neox():
    """Its projection has q, k and v of a head side by side."""
    from transformers.models.gpt_neox.modeling_gpt_neox import GPTNeoXAttention

    config = transformers.GPTNeoXConfig(
        hidden_size=WIDTH, num_attention_heads=4, attention_bias=False, attn_implementation="eager"
    )
    module, mixer = (
        randomized(GPTNeoXAttention(config)),
        our_attention("partial_rotary", kv_heads=4, fraction=0.5),
    )
    parts = module.query_key_value.weight.reshape(4, 3, H, WIDTH)
    for n, name in enumerate(("query", "key", "value")):
        put_linear(getattr(mixer, name), parts[:, n].reshape(-1, WIDTH))
    put_linear(mixer.out, module.dense.weight)
    attends_alike(mixer, module, rotation(H // 2))


def test_nope_is_a_layer_of_smollm_that_does_not_turn():
    from transformers.models.smollm3.modeling_smollm3 import SmolLM3Attention

    config = transformers.SmolLM3Config(**attention_sizes(), no_rope_layers=[1, 0], use_sliding_window=False)
    module, mixer = randomized(SmolLM3Attention(config, 1)), our_attention("nope", kv_heads=2)
    put_projections(mixer, module)
    attends_alike(mixer, module, rotation(H))


@pytest.mark.parametrize("compressed", [None, 12])
def test_multi_head_latent_is_that_of_deepseek(compressed):
    """Its rotary channels pair neighbours, and its heads have keys and values side by side."""
    from transformers.models.deepseek_v2.modeling_deepseek_v2 import DeepseekV2Attention

    turned, latent = 4, 20
    config = transformers.DeepseekV2Config(
        **attention_sizes(kv_heads=HEADS) | {"head_dim": turned},
        qk_nope_head_dim=H,
        qk_rope_head_dim=turned,
        v_head_dim=H,
        kv_lora_rank=latent,
        q_lora_rank=compressed,
    )
    module = randomized(DeepseekV2Attention(config, 0))
    mixer = our_attention(
        "multi_head_latent", kv_heads=HEADS, latent=latent, rotary_size=turned, query_latent=compressed
    )
    halves = [*range(0, turned, 2), *range(1, turned, 2)]
    down = module.kv_a_proj_with_mqa.weight
    up = module.kv_b_proj.weight.reshape(HEADS, 2, H, latent)
    q = (module.q_proj if compressed is None else module.q_b_proj).weight.reshape(HEADS, H + turned, -1)
    q = q[:, [*range(H), *(H + n for n in halves)]].flatten(0, 1)
    if compressed is not None:
        put_linear(mixer.query_down, module.q_a_proj.weight)
        put(mixer.query_norm.scale, numpy(module.q_a_layernorm.weight))
    put_linear(mixer.query, q)
    put_linear(mixer.down, down[:latent])
    put_linear(mixer.rotary_key, down[latent:][halves])
    put(mixer.norm.scale, numpy(module.kv_a_layernorm.weight))
    put_linear(mixer.key, up[:, 0].flatten(0, 1))
    put_linear(mixer.value, up[:, 1].flatten(0, 1))
    put_linear(mixer.out, module.o_proj.weight)
    cos, sin = (x[..., : turned // 2] for x in rotation(turned))
    attends_alike(mixer, module, torch.complex(cos, sin))


def test_longformer_is_that_of_its_authors():
    """Its modules have biases, which are zero here, and no output projection. A row is padded."""
    from transformers.models.longformer.modeling_longformer import LongformerSelfAttention

    length, lengths, first = 24, [24, 19], 2
    config = transformers.LongformerConfig(
        hidden_size=WIDTH, num_attention_heads=HEADS, attention_window=[6], attention_probs_dropout_prob=0.0
    )
    module = randomized(LongformerSelfAttention(config, 0))
    mixer = our_attention(
        "longformer", kv_heads=HEADS, rotary=None, causal=False, window=6, global_tokens=first
    )
    for name in ("query", "key", "value", "query_global", "key_global", "value_global"):
        torch.nn.init.zeros_(getattr(module, name).bias)
        put_linear(getattr(mixer, name), getattr(module, name).weight)
    put_linear(mixer.out, torch.eye(WIDTH))
    x = np.random.default_rng(1).standard_normal((2, length, WIDTH)).astype(np.float32)
    place, masked = np.arange(length), np.arange(length) >= np.array(lengths)[:, None]
    wide = np.broadcast_to(place < first, (2, length))
    kind = torch.tensor(np.where(masked, -1e4, np.where(wide, 1e4, 0)), dtype=torch.float32)
    with torch.no_grad():
        wanted = module(
            torch.tensor(x),
            attention_mask=kind,
            is_index_masked=torch.tensor(masked),
            is_index_global_attn=torch.tensor(wide),
            is_global_attn=True,
        )[0].numpy()
    layout = Layout(Layout.plain(2, length).positions, None, jnp.asarray(lengths))
    found = np.asarray(mixer(jnp.asarray(x), layout)[0])
    np.testing.assert_allclose(found[~masked], wanted[~masked], atol=2e-5 * np.abs(wanted).max())
