"""Mechanisms side by side in one layer against a hybrid layer of `transformers` with the same weights."""

from __future__ import annotations

import pytest
from flax import nnx

from tests.parity.witness import (
    BASE,
    HEADS,
    WIDTH,
    B,
    H,
    T,
    agree,
    attention_sizes,
    numpy,
    put,
    put_linear,
    put_projections,
    put_taps,
    randomized,
    rotation,
)
from transformer_jax.attention.contract import Geometry
from transformer_jax.attention.parallel import ParallelMixer
from transformer_jax.attention.variants.full import Full
from transformer_jax.attention.variants.mamba2 import Mamba2

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

STATES = 6


class Both(ParallelMixer):
    """Attention heads beside those of a state space."""

    name, time, state = "both", "T²", "T"
    parts = (Full, Mamba2)

    def __init__(self, geometry, *, rngs):
        super().__init__(geometry, options=({}, {"state_size": STATES}), rngs=rngs)


def test_parallel_heads_are_those_of_falcon_h1():
    """Its layer without norms and feed-forward part: x, and the sum of both. Ours weighs each part by √½."""
    from transformers.models.falcon_h1.modeling_falcon_h1 import FalconH1DecoderLayer

    config = transformers.FalconH1Config(
        **attention_sizes(kv_heads=1),
        mamba_d_ssm=HEADS * H,
        mamba_n_heads=HEADS,
        mamba_d_head=H,
        mamba_d_state=STATES,
        mamba_chunk_size=32,
        mamba_conv_bias=False,
        mamba_rms_norm=True,
        mamba_norm_before_gate=False,
    )
    layer = randomized(FalconH1DecoderLayer(config, 0))
    layer.input_layernorm = layer.pre_ff_layernorm = torch.nn.Identity()
    layer.feed_forward.forward = torch.zeros_like
    geometry = Geometry(width=WIDTH, heads=2 * HEADS, kv_heads=1, head_size=H, length=T, rotary=BASE)
    mixer = Both(geometry, rngs=nnx.Rngs(0))
    attention, space = mixer.mixers
    theirs = layer.mamba
    theirs.mup_vector = torch.ones(1)  # a multiplier of each channel, which its model hands to its layers
    put_projections(attention, layer.self_attn)
    gate, inputs, time_step = torch.split(theirs.in_proj.weight, [HEADS * H, HEADS * H + 2 * STATES, HEADS])
    put_linear(space.gate, gate)
    put_linear(space.inputs, inputs)
    put_linear(space.time_step, time_step)
    put_linear(space.out, theirs.out_proj.weight)
    put_taps(space.convolution, theirs.conv1d.weight)
    put(space.norm.scale, numpy(theirs.norm.weight))
    for mine, other in ((space.dt_bias, "dt_bias"), (space.A_log, "A_log"), (space.skip, "D")):
        put(mine, numpy(getattr(theirs, other)))
    for part in (attention, space):
        part.out.kernel[...] = 2**0.5 * part.out.kernel[...]
    hidden = torch.full((T, T), float("-inf")).triu(1)[None, None].expand(B, 1, T, T)

    def added(x):
        return layer(x, attention_mask=hidden, position_embeddings=rotation(H))[0] - x

    agree(mixer, added)
