"""What tests against modules of PyTorch share. It is imported where it is used, so that they skip without."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
from flax import nnx

from transformer_jax.attention.catalogue import build
from transformer_jax.attention.contract import Geometry, Layout

B, T, D, N, H = 2, 70, 24, 3, 8  # 70: more than a chunk of 64 on either side
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


def ours(name: str, *, heads: int = N, kv_heads: int | None = None, size: int = H, **options):
    geometry = Geometry(width=D, heads=heads, kv_heads=kv_heads, head_size=size, length=T)
    return build(name, geometry, rngs=nnx.Rngs(0), **options)


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


def agree(mixer, module, *rest, **kw) -> None:
    import torch

    x = np.random.default_rng(1).standard_normal((B, T, D)).astype(np.float32)
    with torch.no_grad():
        wanted = module(torch.from_numpy(x), *rest, **kw)
    wanted = numpy(wanted[0] if isinstance(wanted, tuple) else wanted)
    y, _ = mixer(jnp.asarray(x), Layout.plain(B, T))
    error = np.linalg.norm(np.asarray(y) - wanted) / np.linalg.norm(wanted)
    assert error < CLOSE, f"error {error:.1e}"
