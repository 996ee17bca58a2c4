"""Landmarks, transforms and AFT against independent modules of `transformers` with the same weights."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from transformer_jax.attention.catalogue import build
from transformer_jax.attention.contract import Geometry, Layout

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

B, T, D, N = 2, 24, 16, 2
CLOSE = 5e-6
"""‖ours − theirs‖ / ‖theirs‖ in float32, whose roundings the six iterations of an inverse enlarge."""


def numpy(tensor) -> np.ndarray:
    return tensor.detach().numpy()


def ours(name: str, **options):
    geometry = Geometry(width=D, heads=N, length=T, causal=False)
    return build(name, geometry, rngs=nnx.Rngs(0), **options)


def inputs() -> np.ndarray:
    return np.random.default_rng(0).standard_normal((B, T, D)).astype(np.float32)


def agree(found, wanted) -> None:
    error = np.linalg.norm(np.asarray(found) - wanted) / np.linalg.norm(wanted)
    assert error <= CLOSE, f"error {error:.1e}"


def test_nystrom_is_that_of_nystromformer():
    """The module has biases, which are set to zero, and no output projection; its start of the iteration is
    set to that of each row and head."""
    from transformers.models.nystromformer.modeling_nystromformer import NystromformerSelfAttention

    config = transformers.NystromformerConfig(
        hidden_size=D,
        num_attention_heads=N,
        num_landmarks=6,
        segment_means_seq_len=T,
        conv_kernel_size=5,
        attention_probs_dropout_prob=0.0,
    )
    torch.manual_seed(0)
    module = NystromformerSelfAttention(config).eval()
    module.init_option = "exact"
    mixer = ours("nystrom", landmarks=6, taps=5)
    for name in ("query", "key", "value"):
        projection = getattr(module, name)
        torch.nn.init.normal_(projection.weight, 0, 0.4)
        torch.nn.init.zeros_(projection.bias)
        getattr(mixer, name).kernel[...] = jnp.asarray(numpy(projection.weight).T)
    mixer.kernel[...] = jnp.asarray(numpy(module.conv.weight)[:, 0, :, 0])
    mixer.out.kernel[...] = jnp.eye(D)
    x = inputs()
    with torch.no_grad():
        wanted = numpy(module(torch.tensor(x))[0])
    agree(mixer(jnp.asarray(x), Layout.plain(B, T))[0], wanted)


def test_fnet_is_that_of_transformers():
    """Padded, each row is the transform of what it holds."""
    from transformers.models.fnet.modeling_fnet import FNetBasicFourierTransform

    module = FNetBasicFourierTransform(transformers.FNetConfig(hidden_size=D))
    mixer, x, plain = ours("fnet"), inputs(), Layout.plain(B, T)
    agree(mixer(jnp.asarray(x), plain)[0], numpy(module(torch.tensor(x))[0]))
    lengths = [19, 7]
    padded, _ = mixer(jnp.asarray(x), Layout(plain.positions, None, jnp.asarray(lengths)))
    for row, length in enumerate(lengths):
        wanted = numpy(module(torch.tensor(x[row : row + 1, :length]))[0])
        agree(padded[row : row + 1, :length], wanted)


def test_aft_simple_is_rwkv_that_forgets_nothing():
    """RWKV-4 without decay and without a bonus for the current token is its causal form."""
    from transformers.models.rwkv.modeling_rwkv import rwkv_linear_attention_cpu

    x, geometry = inputs(), Geometry(width=D, heads=N, length=T)
    mixer = build("aft_simple", geometry, rngs=nnx.Rngs(0))
    mixer.key.kernel[...] = 5 * mixer.key.kernel[...]
    mixer.out.kernel[...] = jnp.eye(D)
    q, k, v = (np.array(project(x)) for project in (mixer.query, mixer.key, mixer.value))
    never, none = torch.full((D,), -1e9), torch.zeros(D)
    wkv = numpy(rwkv_linear_attention_cpu(never, none, torch.tensor(k), torch.tensor(v))[0])
    agree(mixer(jnp.asarray(x), Layout.plain(B, T))[0], wkv / (1 + np.exp(-q)))


def test_latent_is_two_attentions_of_torch():
    """Packing and unpacking by `MultiheadAttention`, the first with queries and outputs as they are."""
    m, mixer, x = 5, ours("latent", latents=5), inputs()
    attend = lambda: torch.nn.MultiheadAttention(D, N, bias=False, batch_first=True).eval()
    pack, unpack, eye = attend(), attend(), jnp.eye(D)
    for module, kernels, out in (
        (pack, (eye, mixer.key.kernel, mixer.value.kernel), eye),
        (unpack, (mixer.query.kernel, mixer.packed_key.kernel, mixer.packed_value.kernel), mixer.out.kernel),
    ):
        rows = torch.tensor(np.concatenate([np.asarray(kernel[...]).T for kernel in kernels]))
        module.in_proj_weight = torch.nn.Parameter(rows)
        module.out_proj.weight = torch.nn.Parameter(torch.tensor(np.asarray(out[...]).T))
    tokens = torch.tensor(x)
    latents = torch.tensor(np.array(mixer.latents[...].reshape(1, m, D))).expand(B, m, D)
    packed, _ = pack(latents, tokens, tokens)
    agree(mixer(jnp.asarray(x), Layout.plain(B, T))[0], numpy(unpack(tokens, packed, packed)[0]))
