"""What tests against modules of PyTorch share. It is imported where it is used, so that they skip without."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
from flax import nnx

from transformer_jax.attention.catalogue import build
from transformer_jax.attention.contract import Geometry, Layout

B, T, D, N, H = 2, 70, 24, 3, 8  # 70: more than a chunk of 64 on either side
WIDTH, HEADS, BASE = 32, 4, 10_000.0  # of the family of softmax attention, rotary
CLOSE = 2e-5
"""‖ours − theirs‖ / ‖theirs‖ in float32: both sum in chunks, in another order, and solve the same triangular
systems; some tens of roundings of 6e-8 in a row."""


def randomized(module, seed: int = 0):
    """Every parameter of the module near its usual size, none left at its start."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if name.endswith("A_log"):
                parameter.copy_(0.3 * noise)
            elif "norm" in name or name == "D":
                parameter.copy_(1 + 0.2 * noise)
            elif "bias" in name:
                parameter.copy_(0.5 * noise - 1)
            else:
                parameter.copy_(noise / parameter.shape[-1] ** 0.5)
    return module.eval()


def numpy(tensor) -> np.ndarray:
    return tensor.detach().numpy()


def ours(
    name: str,
    *,
    width: int = D,
    heads: int = N,
    kv_heads: int | None = None,
    size: int = H,
    length: int = T,
    rotary: float | None = None,
    causal: bool = True,
    **options,
):
    geometry = Geometry(
        width=width,
        heads=heads,
        kv_heads=kv_heads,
        head_size=size,
        length=length,
        rotary=rotary,
        causal=causal,
    )
    return build(name, geometry, rngs=nnx.Rngs(0), **options)


def our_attention(name: str, **options):
    """One of the family of softmax attention, at the sizes that `attention_sizes` tells `transformers`."""
    return ours(name, **{"width": WIDTH, "heads": HEADS, "rotary": BASE} | options)


def attention_sizes(kv_heads: int = 2) -> dict:
    return {
        "hidden_size": WIDTH,
        "num_attention_heads": HEADS,
        "num_key_value_heads": kv_heads,
        "head_dim": H,
        "attn_implementation": "eager",
        "attention_dropout": 0.0,
        "num_hidden_layers": 2,
    }


def rotation(size: int) -> tuple:
    """cos and sin (1, T, size) of the rotary embedding, as the modules of `transformers` take them."""
    import torch

    rates = BASE ** (-np.arange(0, size, 2) / size)
    angles = np.tile(np.arange(T)[:, None] * rates, 2)[None]
    return tuple(torch.tensor(f(angles), dtype=torch.float32) for f in (np.cos, np.sin))


def put(parameter, value) -> None:
    value = jnp.asarray(np.asarray(value))
    assert parameter[...].shape == value.shape
    parameter[...] = value


def put_linear(layer, weight) -> None:
    """PyTorch has (outputs, inputs)."""
    put(layer.kernel, numpy(weight).T)


def put_taps(convolution, weight) -> None:
    """PyTorch has (channels, 1, taps)."""
    put(convolution.kernel, numpy(weight)[:, 0].T)


def put_projections(mixer, module) -> None:
    for mine, its in (("query", "q_proj"), ("key", "k_proj"), ("value", "v_proj"), ("out", "o_proj")):
        put_linear(getattr(mixer, mine), getattr(module, its).weight)


def attends_alike(mixer, module, turns) -> None:
    """Causal attention; `turns`: cos and sin as the module takes them."""
    import torch

    mask = torch.full((T, T), float("-inf")).triu(1)[None, None]
    agree(mixer, module, position_embeddings=turns, attention_mask=mask)


def agree(mixer, module, *rest, **kw) -> None:
    import torch

    x = np.random.default_rng(1).standard_normal((B, T, mixer.geometry.width)).astype(np.float32)
    with torch.no_grad():
        wanted = module(torch.from_numpy(x), *rest, **kw)
    wanted = numpy(wanted[0] if isinstance(wanted, tuple) else wanted)
    y, _ = mixer(jnp.asarray(x), Layout.plain(B, T))
    error = np.linalg.norm(np.asarray(y) - wanted) / np.linalg.norm(wanted)
    assert error < CLOSE, f"error {error:.1e}"
