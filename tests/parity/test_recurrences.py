"""Recurrences against the modules of an independent library, whose random weights ours take over."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

from tests.parity.witness import (
    CLOSE,
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
from transformer_jax.attention.contract import Layout

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")


def test_mamba2():
    from transformers.models.mamba2.modeling_mamba2 import Mamba2Config, Mamba2Mixer

    state_size, inner = 6, N * H
    config = Mamba2Config(
        hidden_size=D,
        num_heads=N,
        head_dim=H,
        expand=N * H // D,
        state_size=state_size,
        n_groups=1,
        conv_kernel=4,
        use_conv_bias=False,
        chunk_size=32,
        layer_norm_epsilon=1e-5,
        num_hidden_layers=1,
    )
    theirs = randomized(Mamba2Mixer(config, layer_idx=0))
    mixer = ours("mamba2", kv_heads=1, state_size=state_size)
    gate, inputs, time_step = torch.split(theirs.in_proj.weight, [inner, inner + 2 * state_size, N])
    put_linear(mixer.gate, gate)
    put_linear(mixer.inputs, inputs)
    put_linear(mixer.time_step, time_step)
    put_linear(mixer.out, theirs.out_proj.weight)
    put_taps(mixer.convolution, theirs.conv1d.weight)
    put(mixer.norm.scale, numpy(theirs.norm.weight))
    for mine, other in ((mixer.dt_bias, "dt_bias"), (mixer.A_log, "A_log"), (mixer.skip, "D")):
        put(mine, numpy(getattr(theirs, other)))
    agree(mixer, theirs)


def put_convolved(mixer, weight) -> None:
    """One convolution over q, k and v together."""
    parts = torch.split(weight, weight.shape[0] // 3)
    for convolution, part in zip(
        (mixer.query_convolution, mixer.key_convolution, mixer.value_convolution), parts, strict=True
    ):
        put_taps(convolution, part)


def test_gated_delta_net():
    from transformers.models.qwen3_next.modeling_qwen3_next import Qwen3NextConfig, Qwen3NextGatedDeltaNet

    config = Qwen3NextConfig(
        hidden_size=D,
        linear_num_value_heads=N,
        linear_num_key_heads=N,
        linear_key_head_dim=H,
        linear_value_head_dim=H,
        linear_conv_kernel_dim=4,
        rms_norm_eps=1e-6 / H,  # they divide by √H before the norm, ours does not
        num_hidden_layers=1,
        layer_types=["linear_attention"],
    )
    theirs = randomized(Qwen3NextGatedDeltaNet(config, layer_idx=0))
    mixer = ours("gated_delta_net")
    by_head = theirs.in_proj_qkvz.weight.reshape(N, 4, H, D).transpose(0, 1).reshape(4, N * H, D)
    for layer, weight in zip((mixer.query, mixer.key, mixer.value, mixer.gate), by_head, strict=True):
        put_linear(layer, weight)
    rates = theirs.in_proj_ba.weight.reshape(N, 2, D)
    put_linear(mixer.write_rate, rates[:, 0])
    put_linear(mixer.decay_rate, rates[:, 1])
    put_convolved(mixer, theirs.conv1d.weight)
    put_linear(mixer.out, theirs.out_proj.weight)
    put(mixer.norm.scale, numpy(theirs.norm.weight))
    put(mixer.dt_bias, numpy(theirs.dt_bias))
    put(mixer.A_log, numpy(theirs.A_log))
    agree(mixer, theirs)


@pytest.mark.parametrize("beta_max", [1.0, 2.0])
def test_delta_net_is_the_gated_one_without_decay(beta_max):
    """Their chunked gated delta rule with a decay of 1, on our streams; β above 1 flips keys."""
    from transformers.models.qwen3_next.modeling_qwen3_next import torch_chunk_gated_delta_rule

    mixer = ours("delta_net", beta_max=beta_max)
    x = jnp.asarray(np.random.default_rng(1).standard_normal((B, T, D)), jnp.float32)
    layout = Layout.plain(B, T)
    streams, _ = mixer.streams(x, layout)
    q, k, v, beta = (torch.from_numpy(np.array(streams[s])) for s in ("q", "k", "v", "beta"))
    assert (beta.max() > 1) == (beta_max > 1)
    wanted, _ = torch_chunk_gated_delta_rule(q * H**0.5, k, v, g=torch.zeros_like(beta), beta=beta)
    o, _ = mixer.core(streams, layout, None)
    error = np.linalg.norm(np.asarray(o) - numpy(wanted)) / np.linalg.norm(numpy(wanted))
    assert error < CLOSE, f"error {error:.1e}"


def test_kimi_delta():
    from transformers.models.kimi_linear.modeling_kimi_linear import (
        KimiLinearConfig,
        KimiLinearDeltaAttention,
    )

    config = KimiLinearConfig(
        hidden_size=D,
        linear_num_heads=N,
        linear_head_dim=H,
        linear_conv_kernel_dim=4,
        rms_norm_eps=1e-6 / H,  # they divide by √H before the norm, ours does not
        num_hidden_layers=1,
        layer_types=["linear_attention"],
    )
    theirs = randomized(KimiLinearDeltaAttention(config, layer_idx=0))
    mixer = ours("kimi_delta")
    gate = theirs.forget_gate
    for layer, other in (
        (mixer.query, theirs.q_proj),
        (mixer.key, theirs.k_proj),
        (mixer.value, theirs.v_proj),
        (mixer.write_rate, theirs.b_proj),
        (mixer.decay_down, gate.f_a_proj),
        (mixer.decay_up, gate.f_b_proj),
        (mixer.gate_down, theirs.g_a_proj),
        (mixer.gate_up, theirs.g_b_proj),
        (mixer.out, theirs.o_proj),
    ):
        put_linear(layer, other.weight)
    put_convolved(mixer, theirs.conv1d.weight)
    put(mixer.norm.scale, numpy(theirs.o_norm.weight))
    put(mixer.dt_bias, numpy(gate.dt_bias))
    put(mixer.A_log, numpy(gate.A_log).reshape(-1))
    agree(mixer, theirs)


def test_lightning():
    from transformers.models.minimax.modeling_minimax import MiniMaxConfig, MiniMaxLightningAttention

    config = MiniMaxConfig(
        hidden_size=D,
        num_attention_heads=N,
        head_dim=H,
        block_size=16,
        num_hidden_layers=4,
        layer_types=["linear_attention"] * 4,
        hidden_act="silu",
    )
    layer = 2
    theirs = randomized(MiniMaxLightningAttention(config, layer_idx=layer))
    slope = float(theirs.slope_rate[0, 0, 0]) * 2 ** (8 / N)
    assert slope == pytest.approx(1 - layer / 3, abs=1e-4)
    mixer = ours("lightning", slope=slope)
    by_head = theirs.qkv_proj.weight.reshape(N, 3, H, D).transpose(0, 1).reshape(3, N * H, D)
    for mine, weight in zip((mixer.query, mixer.key, mixer.value), by_head, strict=True):
        put_linear(mine, weight)
    put_linear(mixer.gate, theirs.output_gate.weight)
    put_linear(mixer.out, theirs.out_proj.weight)
    put(mixer.norm.scale, numpy(theirs.norm.weight))
    agree(mixer, theirs, position_embeddings=None, attention_mask=None)


def test_mlstm():
    from transformers.models.xlstm import modeling_xlstm
    from transformers.models.xlstm.configuration_xlstm import xLSTMConfig

    if not hasattr(modeling_xlstm, "xLSTMLayer"):
        pytest.skip("the external xlstm package takes its place")
    config = xLSTMConfig(
        hidden_size=D,
        num_heads=N,
        num_hidden_layers=1,
        qk_dim_factor=1.0,
        v_dim_factor=1.0,
        chunk_size=35,
        mode="train",
        autocast_kernel_dtype="float32",
        gate_soft_cap=1e4,  # ours has none
        eps=0.0,
    )
    theirs = randomized(modeling_xlstm.xLSTMLayer(config))
    mixer = ours("mlstm")
    for layer, other in (
        (mixer.query, theirs.q),
        (mixer.key, theirs.k),
        (mixer.value, theirs.v),
        (mixer.gate, theirs.ogate_preact),
        (mixer.input_gate, theirs.igate_preact),
        (mixer.forget_gate, theirs.fgate_preact),
        (mixer.out, theirs.out_proj),
    ):
        put_linear(layer, other.weight)
    put(mixer.input_gate.bias, numpy(theirs.igate_preact.bias))
    put(mixer.forget_gate.bias, numpy(theirs.fgate_preact.bias))
    put(mixer.norm_scale, numpy(theirs.multihead_norm.weight).reshape(N, H))
    agree(mixer, theirs)
