"""Variants of full attention and sparse patterns against independent modules with the same weights."""

from __future__ import annotations

import pytest

pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from tests.parity.test_softmax_family import (  # noqa: E402
    SIZE,
    agree,
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
