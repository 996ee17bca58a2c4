"""Mechanisms on the element-wise scan against the modules of an independent library."""

from __future__ import annotations

import pytest

from tests.parity.witness import (
    B,
    D,
    H,
    N,
    T,
    agree,
    numpy,
    ours,
    put,
    put_linear,
    put_taps,
    randomized,
)

torch = pytest.importorskip("torch")


def test_rg_lru():
    from transformers.models.recurrent_gemma.modeling_recurrent_gemma import (
        RecurrentGemmaConfig,
        RecurrentGemmaRecurrentBlock,
    )

    config = RecurrentGemmaConfig(
        hidden_size=D, lru_width=N * H, num_attention_heads=N, head_dim=H, conv1d_width=4, num_hidden_layers=1
    )
    theirs = randomized(RecurrentGemmaRecurrentBlock(config, layer_idx=0))
    # Ours has no biases but those of the gates.
    for layer in (theirs.linear_x, theirs.linear_y, theirs.linear_out, theirs.conv_1d):
        torch.nn.init.zeros_(layer.bias)
    mixer = ours("rg_lru")
    put_linear(mixer.inputs, theirs.linear_x.weight)
    put_linear(mixer.gate, theirs.linear_y.weight)
    put_linear(mixer.out, theirs.linear_out.weight)
    put_taps(mixer.convolution, theirs.conv_1d.weight)
    unit = theirs.rg_lru
    put(mixer.gates, numpy(torch.stack([unit.recurrent_gate_weight, unit.input_gate_weight], 1)))
    put(mixer.gates_bias, numpy(torch.stack([unit.recurrent_gate_bias, unit.input_gate_bias], 1)))
    put(mixer.Lambda, numpy(unit.recurrent_param))
    # Counted from 1: the token at position 0 is an exception of theirs, which the paper does not have.
    positions = torch.arange(1, T + 1).expand(B, T)
    agree(mixer, theirs, positions, None, use_cache=False)


def test_mamba():
    from transformers.models.mamba.modeling_mamba import MambaConfig, MambaMixer

    config = MambaConfig(
        hidden_size=D,
        expand=N * H // D,
        state_size=6,
        time_step_rank=5,
        conv_kernel=4,
        use_conv_bias=False,
        num_hidden_layers=1,
    )
    theirs = randomized(MambaMixer(config, layer_idx=0))
    mixer = ours("mamba", state_size=6, rank=5)
    inputs, gate = torch.chunk(theirs.in_proj.weight, 2)
    put_linear(mixer.inputs, inputs)
    put_linear(mixer.gate, gate)
    put_linear(mixer.selection_down, theirs.x_proj.weight)
    put_linear(mixer.time_step, theirs.dt_proj.weight)
    put_linear(mixer.out, theirs.out_proj.weight)
    put_taps(mixer.convolution, theirs.conv1d.weight)
    for mine, other in (
        (mixer.dt_bias, theirs.dt_proj.bias),
        (mixer.A_log, theirs.A_log),
        (mixer.skip, theirs.D),
    ):
        put(mine, numpy(other))
    agree(mixer, theirs)
