"""Generation: the right tokens are ruled out, and batches decode as single rows do."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from transformer_jax.errors import BadInput
from transformer_jax.model.config import Transformer, mechanism
from transformer_jax.model.decode import Sampling, draw, generate, restrict
from transformer_jax.model.transformer import Model

LOGITS = jnp.log(jnp.array([[0.1, 0.4, 0.05, 0.25, 0.2]]))


def model(*mixers, length=40):
    config = Transformer(
        mixers=tuple(map(mechanism, mixers)), layers=2 * len(mixers), width=16, heads=2, positions="rotary"
    )
    return Model(
        config, vocabulary=13, outputs=13, target="token", causal=True, length=length, rngs=nnx.Rngs(0)
    )


@pytest.mark.quick
@pytest.mark.parametrize(
    ("sampling", "kept"),
    [
        (Sampling(), {0, 1, 2, 3, 4}),
        (Sampling(top_k=2), {1, 3}),
        (Sampling(top_k=99), {0, 1, 2, 3, 4}),
        (Sampling(top_p=0.39), {1}),
        (Sampling(top_p=0.6), {1, 3}),
        (Sampling(top_p=0.7), {1, 3, 4}),
        (Sampling(top_k=3, top_p=0.4), {1}),
    ],
)
def test_restriction_keeps_the_right_tokens(sampling, kept):
    assert set(np.flatnonzero(np.isfinite(restrict(LOGITS, sampling)[0]))) == kept


@pytest.mark.quick
def test_draws_follow_the_probabilities():
    draws = jax.vmap(lambda key: draw(key, LOGITS, Sampling(temperature=0.5)))(
        jax.random.split(jax.random.key(0), 4000)
    )
    wanted = np.exp(2 * np.asarray(LOGITS[0]))
    np.testing.assert_allclose(np.bincount(draws[:, 0], minlength=5) / 4000, wanted / wanted.sum(), atol=0.03)


@pytest.mark.parametrize("mixers", [("full",), ("gated_delta_net", "sliding_window")], ids="+".join)
def test_greedy_text_is_that_of_the_whole_sequence(mixers):
    """Prefill and steps pick the tokens that the whole model, run anew each time, would pick; and a
    row in a batch is continued as it is alone, whatever the padding beside it."""
    m = model(*mixers)
    prompts = [np.array([1, 5, 3, 2, 9, 9, 4]), np.array([7, 2])]
    written = generate(m, prompts, count=6, sampling=Sampling(temperature=0))
    forward = jax.jit(lambda x: m(x)[0])
    for prompt, row in zip(prompts, written, strict=True):
        # One program serves every length: a causal model does not see what fills the rest.
        text = np.zeros((1, 13), np.int32)
        text[0, : len(prompt)] = prompt
        for t in range(len(prompt), len(prompt) + 6):
            text[0, t] = forward(text)[0, t - 1].argmax()
        np.testing.assert_array_equal(row, text[0, len(prompt) : len(prompt) + 6])


@pytest.mark.quick
@pytest.mark.parametrize(
    ("prompt", "count", "said"),
    [([], 3, "empty"), ([1, 13], 3, "outside the vocabulary"), ([1], 41, "exceed"), ([1], 0, "at least 1")],
)
def test_bad_prompts_are_refused(prompt, count, said):
    with pytest.raises(BadInput, match=said):
        generate(model("full"), [np.array(prompt, np.int32)], count=count)


@pytest.mark.quick
@pytest.mark.parametrize("bad", [{"temperature": -1.0}, {"top_k": 0}, {"top_p": 0.0}, {"top_p": 1.5}])
def test_bad_sampling_is_refused(bad):
    with pytest.raises(BadInput):
        Sampling(**bad)
