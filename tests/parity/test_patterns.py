"""Full attention and its masks against PyTorch's SDPA and modules of `transformers` with the same weights."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

from tests.parity.witness import (
    CLOSE,
    HEADS,
    WIDTH,
    B,
    H,
    T,
    agree,
    attends_alike,
    attention_sizes,
    numpy,
    our_attention,
    ours,
    put,
    put_linear,
    put_projections,
    put_taps,
    randomized,
    rotation,
)
from transformer_jax.attention.contract import Layout

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")


def draw(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def test_full_is_that_of_llama():
    from transformers.models.llama.modeling_llama import LlamaAttention

    module = randomized(LlamaAttention(transformers.LlamaConfig(**attention_sizes()), 0))
    mixer = our_attention("full", kv_heads=2)
    put_projections(mixer, module)
    attends_alike(mixer, module, rotation(H))


def sdpa(streams, seen) -> np.ndarray:
    """PyTorch's attention on our streams, whose heads share keys; `seen` broadcasts to (B, N, T, S)."""
    q, k, v = (torch.from_numpy(np.array(streams[name])).transpose(1, 2) for name in "qkv")
    o = torch.nn.functional.scaled_dot_product_attention(
        q, k, v, attn_mask=torch.from_numpy(seen), enable_gqa=True
    )
    return o.transpose(1, 2).numpy()


def close(found, wanted):
    error = np.linalg.norm(found - wanted) / np.linalg.norm(wanted)
    assert error < CLOSE, f"error {error:.1e}"


@pytest.mark.parametrize("execution", ["blocks", "naive"])
@pytest.mark.parametrize("causal", [True, False])
def test_full_is_sdpa_of_padded_and_packed_rows(causal, execution):
    mixer = our_attention("full", kv_heads=2, causal=causal, execution=execution)
    lengths = np.array([T - 9, T])
    segments = (np.arange(T)[None] >= np.array([[31], [0]])).astype(int)
    place = np.arange(T)[None] - 31 * segments * np.array([[1], [0]])
    layout = Layout(jnp.asarray(place), jnp.asarray(segments), jnp.asarray(lengths))
    streams, _ = mixer.streams(jnp.asarray(draw(1, B, T, WIDTH)), layout)
    seen = segments[:, :, None] == segments[:, None]
    seen = seen & (np.arange(T) < lengths[:, None])[:, None]
    if causal:
        seen = seen & np.tri(T, dtype=bool)
    valid, found = np.arange(T) < lengths[:, None], np.asarray(mixer.core(streams, layout, None)[0])
    close(found[valid], sdpa(streams, seen[:, None])[valid])


def test_full_is_sdpa_across_two_sequences():
    mixer = our_attention("full", kv_heads=1, causal=False, rotary=None)
    x, context, layout = draw(1, B, 13, WIDTH), draw(2, B, 29, WIDTH), Layout.plain(B, 13)
    streams, _ = mixer.streams(jnp.asarray(x), layout, None, jnp.asarray(context))
    found, _ = mixer.core(streams, layout, None)
    close(found, sdpa(streams, np.ones((1, 1, 13, 29), bool)))


def test_alibi_is_that_of_mpt():
    """Its penalty is of a key's place alone, which a row's softmax cannot tell from that of a distance."""
    from transformers.models.mpt.modeling_mpt import MptAttention, build_mpt_alibi_tensor

    config = transformers.MptConfig(d_model=WIDTH, n_heads=HEADS, max_seq_len=T)
    module = randomized(MptAttention(config, 0))
    mixer = our_attention("alibi", kv_heads=HEADS, rotary=None)
    for layer, weight in zip(
        (mixer.query, mixer.key, mixer.value), torch.split(module.Wqkv.weight, WIDTH), strict=True
    ):
        put_linear(layer, weight)
    put_linear(mixer.out, module.out_proj.weight)
    hidden = torch.ones(T, T, dtype=torch.bool).triu(1)[None, None]
    agree(mixer, module, build_mpt_alibi_tensor(HEADS, T), attention_mask=hidden)


def local(window: int):
    """GPT-Neo's local attention, which masks by itself. It does not divide by √H."""
    from transformers.models.gpt_neo.modeling_gpt_neo import GPTNeoSelfAttention

    config = transformers.GPTNeoConfig(
        hidden_size=WIDTH,
        num_heads=HEADS,
        num_layers=2,
        attention_types=[[["global", "local"], 1]],
        window_size=window,
        max_position_embeddings=T,
        attention_dropout=0.0,
        resid_dropout=0.0,
    )
    module = randomized(GPTNeoSelfAttention(config, "local", 1))
    torch.nn.init.zeros_(module.out_proj.bias)
    return module


def windowed(name: str, window: int, **options):
    """Ours with the weights of `local`, and it."""
    module, mixer = local(window), our_attention(name, kv_heads=HEADS, rotary=None, window=window, **options)
    put_linear(mixer.query, H**0.5 * module.q_proj.weight)
    for mine, its in (("key", "k_proj"), ("value", "v_proj"), ("out", "out_proj")):
        put_linear(getattr(mixer, mine), getattr(module, its).weight)
    return mixer, module


def test_sliding_window_is_local_attention_of_gpt_neo():
    agree(*windowed("sliding_window", 7))


@pytest.mark.parametrize("causal", [True, False])
def test_dilated_is_a_window_of_every_third_token(causal):
    mixer, module = windowed("dilated", 4, dilation=3, causal=causal)
    x, wanted = torch.from_numpy(draw(1, B, T, WIDTH)), torch.zeros(B, T, WIDTH)
    for first in range(3):
        part = x[:, first::3]
        with torch.no_grad():
            if causal:
                wanted[:, first::3] = module(part)[0]
            else:
                wanted[:, first::3] = both_ways(module, part, 4)
    found, _ = mixer(jnp.asarray(x.numpy()), Layout.plain(B, T))
    close(found, wanted.numpy())


def both_ways(module, x, window: int):
    """The weights of `local` in PyTorch's own layer, with a window to both sides."""
    layer = torch.nn.MultiheadAttention(WIDTH, HEADS, bias=False, batch_first=True).eval()
    rows = (H**0.5 * module.q_proj.weight, module.k_proj.weight, module.v_proj.weight)
    layer.in_proj_weight = torch.nn.Parameter(torch.cat(rows))
    layer.out_proj.weight = module.out_proj.weight
    place = torch.arange(x.shape[1])
    far = (place[:, None] - place).abs() >= window
    return layer(x, x, x, attn_mask=far, need_weights=False)[0]


def test_sliding_window_to_both_sides_is_longformer_without_global_tokens():
    """Its window counts the tokens of both sides; a row is padded."""
    from transformers.models.longformer.modeling_longformer import LongformerSelfAttention

    length, lengths, window = 24, [24, 19], 4
    config = transformers.LongformerConfig(
        hidden_size=WIDTH,
        num_attention_heads=HEADS,
        attention_window=[2 * (window - 1)],
        attention_probs_dropout_prob=0.0,
    )
    module = randomized(LongformerSelfAttention(config, 0))
    mixer = our_attention("sliding_window", kv_heads=HEADS, rotary=None, causal=False, window=window)
    for name in ("query", "key", "value"):
        torch.nn.init.zeros_(getattr(module, name).bias)
        put_linear(getattr(mixer, name), getattr(module, name).weight)
    put_linear(mixer.out, torch.eye(WIDTH))
    x, masked = draw(1, 2, length, WIDTH), np.arange(length) >= np.array(lengths)[:, None]
    with torch.no_grad():
        wanted = module(
            torch.tensor(x),
            attention_mask=torch.tensor(np.where(masked, -1e4, 0), dtype=torch.float32),
            is_index_masked=torch.tensor(masked),
            is_index_global_attn=torch.zeros(2, length, dtype=torch.bool),
            is_global_attn=False,
        )[0].numpy()
    layout = Layout(Layout.plain(2, length).positions, None, jnp.asarray(lengths))
    found = np.asarray(mixer(jnp.asarray(x), layout)[0])
    close(found[~masked], wanted[~masked])


@pytest.mark.parametrize("padded", [0, 5])
def test_bigbird_is_that_of_its_authors(padded):
    """Its global blocks are the first and the last one. Ours are the first; the last one's row and column are
    written into the random blocks here, beside those that were drawn."""
    from transformers.models.big_bird.modeling_big_bird import BigBirdBlockSparseAttention, BigBirdModel

    block, blocks = 4, 10
    length = block * blocks
    config = transformers.BigBirdConfig(
        hidden_size=WIDTH,
        num_attention_heads=HEADS,
        block_size=block,
        num_random_blocks=1,
        use_bias=False,
        max_position_embeddings=length,
    )
    module = randomized(BigBirdBlockSparseAttention(config))
    # For blocks 1 to 8: none of their windows, nor the first or the last.
    drawn = [4, 6, 7, 8, 1, 3, 5, 2]
    module._bigbird_block_rand_mask_with_head = lambda **_: [np.array(drawn)[:, None]] * HEADS
    mixer = our_attention(
        "bigbird",
        kv_heads=HEADS,
        rotary=None,
        causal=False,
        length=length,
        block=block,
        global_blocks=1,
        random_blocks=blocks,
    )
    for name in ("query", "key", "value"):
        put_linear(getattr(mixer, name), getattr(module, name).weight)
    put_linear(mixer.out, torch.eye(WIDTH))
    random = np.full((blocks, blocks), -1)
    for row, other in enumerate(drawn, start=1):
        random[row, 0] = other
        random[row, 1] = blocks - 1 if row < blocks - 2 else -1  # the last but one has it in its window
    random[-1, : blocks - 3] = np.arange(1, blocks - 2)
    mixer.random[...] = jnp.asarray(random, jnp.int32)
    x = draw(1, B, length, WIDTH)
    valid = np.arange(length) < length - np.array([[padded], [0]])
    mask = torch.tensor(valid, dtype=torch.float32)
    of_blocks, band, rows, keys = BigBirdModel.create_masks_for_block_sparse_attn(mask, block)
    with torch.no_grad():
        wanted = module(
            torch.tensor(x),
            band_mask=band,
            from_mask=rows,
            to_mask=keys,
            from_blocked_mask=of_blocks,
            to_blocked_mask=of_blocks,
        )[0].numpy()
    layout = Layout(Layout.plain(B, length).positions, None, jnp.asarray(valid.sum(axis=1)))
    found = np.asarray(mixer(jnp.asarray(x), layout)[0])
    close(found[valid], wanted[valid])


def test_block_sparse_is_sdpa_under_a_mask_of_blocks():
    rows, block = ((0,), (0, 1), (2,), (0, 3), (1, 2, 4)), 16
    listed = torch.zeros(len(rows), len(rows))
    for row, keys in enumerate(rows):
        listed[row, list(keys)] = 1
    mask = torch.kron(listed, torch.ones(block, block)).bool().numpy()[:T, :T]
    for causal in (True, False):
        mixer = our_attention("block_sparse", kv_heads=2, causal=causal, block=block, blocks=rows)
        layout = Layout.plain(B, T)
        streams, _ = mixer.streams(jnp.asarray(draw(1, B, T, WIDTH)), layout)
        seen = mask & np.tri(T, dtype=bool) if causal else mask
        close(mixer.core(streams, layout, None)[0], sdpa(streams, seen[None, None]))


def test_short_convolution_is_that_of_torch():
    taps = 4
    theirs = randomized(torch.nn.Conv1d(WIDTH, WIDTH, taps, groups=WIDTH, padding=taps - 1))
    mixer = ours("short_convolution", width=WIDTH, taps=taps)
    put_taps(mixer.convolution, theirs.weight)
    put(mixer.bias, numpy(theirs.bias))
    x = draw(1, B, T, WIDTH)
    with torch.no_grad():
        wanted = theirs(torch.from_numpy(x).mT)[..., :T].mT.numpy()
    close(mixer(jnp.asarray(x), Layout.plain(B, T))[0], wanted)
