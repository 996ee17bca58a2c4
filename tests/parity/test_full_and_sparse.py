"""Variants of full attention and sparse patterns against independent modules with the same weights."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

from transformer_jax.attention.contract import Layout

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from tests.parity.test_softmax_family import (  # noqa: E402
    HEADS,
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


@pytest.mark.parametrize("compressed", [None, 12])
def test_multi_head_latent_is_that_of_deepseek(compressed):
    """Its rotary channels pair neighbours, and its heads have keys and values side by side."""
    from transformers.models.deepseek_v2.modeling_deepseek_v2 import DeepseekV2Attention

    turned, latent = 4, 20
    config = transformers.DeepseekV2Config(
        **sizes(kv_heads=HEADS) | {"head_dim": turned},
        qk_nope_head_dim=SIZE,
        qk_rope_head_dim=turned,
        v_head_dim=SIZE,
        kv_lora_rank=latent,
        q_lora_rank=compressed,
    )
    module = randomized(DeepseekV2Attention(config, 0))
    mixer = ours(
        "multi_head_latent", kv_heads=HEADS, latent=latent, rotary_size=turned, query_latent=compressed
    )
    halves = [*range(0, turned, 2), *range(1, turned, 2)]
    down = module.kv_a_proj_with_mqa.weight
    up = module.kv_b_proj.weight.reshape(HEADS, 2, SIZE, latent)
    q = (module.q_proj if compressed is None else module.q_b_proj).weight.reshape(HEADS, SIZE + turned, -1)
    q = q[:, [*range(SIZE), *(SIZE + n for n in halves)]].flatten(0, 1)
    if compressed is not None:
        give(mixer.query_down.kernel, module.q_a_proj.weight.T)
        give(mixer.query_norm.scale, module.q_a_layernorm.weight)
    give(mixer.query.kernel, q.T)
    give(mixer.down.kernel, down[:latent].T)
    give(mixer.rotary_key.kernel, down[latent:][halves].T)
    give(mixer.norm.scale, module.kv_a_layernorm.weight)
    give(mixer.key.kernel, up[:, 0].flatten(0, 1).T)
    give(mixer.value.kernel, up[:, 1].flatten(0, 1).T)
    give(mixer.out.kernel, module.o_proj.weight.T)
    cos, sin = (x[..., : turned // 2] for x in rotation(turned))
    agree(mixer, module, torch.complex(cos, sin))


def test_longformer_is_that_of_its_authors():
    """Its modules have biases, which are zero here, and no output projection. A row is padded."""
    from transformers.models.longformer.modeling_longformer import LongformerSelfAttention

    length, lengths, first = 24, [24, 19], 2
    config = transformers.LongformerConfig(
        hidden_size=WIDTH, num_attention_heads=HEADS, attention_window=[6], attention_probs_dropout_prob=0.0
    )
    module = randomized(LongformerSelfAttention(config, 0))
    mixer = ours("longformer", kv_heads=HEADS, rotary=None, causal=False, window=6, global_tokens=first)
    for name in ("query", "key", "value", "query_global", "key_global", "value_global"):
        torch.nn.init.zeros_(getattr(module, name).bias)
        give(getattr(mixer, name).kernel, getattr(module, name).weight.T)
    give(mixer.out.kernel, torch.eye(WIDTH))
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
