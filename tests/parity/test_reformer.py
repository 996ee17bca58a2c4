"""Reformer's attention against that of `transformers`, with the same weights and the same rotations."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from transformer_jax.attention.catalogue import build
from transformer_jax.attention.contract import Geometry
from transformer_jax.conformance.subject import run

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

B, T, D, N, H, SEED = 2, 24, 16, 2, 8, 5


@pytest.mark.parametrize("chunk", [4, 12, 24])
def test_one_round_is_that_of_lsh_self_attention(chunk):
    """With several rounds theirs counts a key once in each, and lets the first chunk of a round see the last
    one of the round before."""
    from transformers.models.reformer.modeling_reformer import LSHSelfAttention

    config = transformers.ReformerConfig(
        hidden_size=D,
        num_attention_heads=N,
        attention_head_size=H,
        num_hashes=1,
        num_buckets=6,
        lsh_attn_chunk_length=chunk,
        lsh_attention_probs_dropout_prob=0.0,
        hash_seed=SEED,
        is_decoder=False,
    )
    theirs = LSHSelfAttention(config).eval()
    g = Geometry(width=D, heads=N, head_size=H, length=T, causal=False)
    mixer = build("reformer", g, chunk=chunk, buckets=6, rounds=1, rngs=nnx.Rngs(0))
    for mine, other in ((mixer.query, theirs.query_key), (mixer.value, theirs.value)):
        torch.nn.init.normal_(other.weight, std=0.5, generator=torch.Generator().manual_seed(1))
        mine.kernel[...] = jnp.asarray(other.weight.detach().numpy().T)
    mixer.out.kernel[...] = jnp.eye(N * H)
    torch.manual_seed(SEED)
    mixer.rotations[...] = jnp.asarray(torch.randn(mixer.rotations[...].shape).numpy())
    x = np.random.default_rng(1).standard_normal((B, T, D)).astype(np.float32)
    with torch.no_grad():
        wanted = theirs(torch.from_numpy(x)).hidden_states.numpy()
    found, _ = run(mixer, jnp.asarray(x))
    np.testing.assert_allclose(found, wanted, atol=1e-5 * np.abs(wanted).max())
