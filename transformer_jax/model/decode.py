"""Continues token sequences: prefill once, then one token at a time on the mechanisms' states."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from transformer_jax.errors import BadInput
from transformer_jax.model.transformer import Model


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How the next token is drawn from the logits.

    Attributes:
      temperature: divides the logits; 0 takes the most likely token.
      top_k: only the k most likely tokens (arXiv:1805.04833); None for all.
      top_p: only the smallest set of most likely tokens that holds this probability (nucleus
        sampling, arXiv:1904.09751); 1 for all.
    """

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float = 1.0

    def __post_init__(self):
        if self.temperature < 0:
            raise BadInput(f"temperature={self.temperature} must be 0 (the most likely token) or more.")
        if self.top_k is not None and self.top_k < 1:
            raise BadInput(f"top_k={self.top_k} must be at least 1; leave it out to allow every token.")
        if not 0 < self.top_p <= 1:
            raise BadInput(f"top_p={self.top_p} must be above 0 and at most 1.")


def restrict(logits: jax.Array, sampling: Sampling) -> jax.Array:
    """Logits (B, V) divided by the temperature, −inf for the tokens that `sampling` rules out.

    The temperature must be above 0. Ties at the border of top-k or top-p are all kept.
    """
    logits = logits / sampling.temperature
    if sampling.top_k is not None and sampling.top_k < logits.shape[-1]:
        least = jax.lax.top_k(logits, sampling.top_k)[0][:, -1:]
        logits = jnp.where(logits < least, -jnp.inf, logits)
    if sampling.top_p < 1:
        ordered = jnp.flip(jnp.sort(logits, axis=-1), axis=-1)
        mass = jnp.cumsum(jax.nn.softmax(ordered), axis=-1)
        # A token stays if the tokens before it do not yet hold the mass; the first one always does.
        stays = jnp.concatenate([jnp.zeros_like(mass[:, :1]), mass[:, :-1]], axis=-1) < sampling.top_p
        least = jnp.min(jnp.where(stays, ordered, jnp.inf), axis=-1, keepdims=True)
        logits = jnp.where(logits < least, -jnp.inf, logits)
    return logits


def draw(key: jax.Array, logits: jax.Array, sampling: Sampling) -> jax.Array:
    """The next tokens (B,) from logits (B, V)."""
    if sampling.temperature == 0:
        return jnp.argmax(logits, axis=-1).astype(jnp.int32)
    return jax.random.categorical(key, restrict(logits, sampling)).astype(jnp.int32)


def continuation(model: Model, count: int, sampling: Sampling) -> tuple[Any, Any, Any]:
    """The two programs that write `count` tokens after a prompt, and the arrays of the model.

    Returns:
      values: the model's arrays, the first argument of both programs.
      prefill: (values, tokens (B, P), lengths (B,)) → (logits of each row's next token (B, V), state).
      write: (values, logits, state, key) → tokens (B, count).

    Raises BadInput where the model is no causal model of tokens.
    """
    if model.target != "token" or not model.geometry.causal or model.outputs != model.vocabulary:
        raise BadInput(
            "Only a causal model of tokens writes text; this one classifies or sees both directions: "
            "give the run of a causal task."
        )
    graph, values = nnx.split(model)

    @jax.jit
    def prefill(values, tokens, lengths):
        model = nnx.merge(graph, values)
        logits, state = model(tokens, lengths=lengths, state=model.init_state(tokens.shape[0]))
        return jnp.take_along_axis(logits, (lengths - 1)[:, None, None], axis=1)[:, 0], state

    @jax.jit
    def write(values, logits, state, key):
        model = nnx.merge(graph, values)

        def step(carry, key):
            logits, state = carry
            token = draw(key, logits, sampling)
            logits, state = model(token[:, None], state=state)
            return (logits[:, 0], state), token

        _, tokens = jax.lax.scan(step, (logits, state), jax.random.split(key, count))
        return tokens.T

    return values, prefill, write


def generate(
    model: Model,
    prompts: list[np.ndarray],
    *,
    count: int,
    sampling: Sampling | None = None,
    seed: int = 0,
) -> np.ndarray:
    """Continues each prompt (P,) by `count` tokens: (B, count) int32.

    Raises BadInput where a prompt is empty, holds an unknown token, or leaves no room for `count`.
    """
    tokens, lengths = pad_prompts(model, prompts, count)
    values, prefill, write = continuation(model, count, sampling or Sampling())
    logits, state = prefill(values, tokens, lengths)
    return np.asarray(write(values, logits, state, jax.random.key(seed)))


def pad_prompts(model: Model, prompts: list[np.ndarray], count: int) -> tuple[jax.Array, jax.Array]:
    """Prompts of any lengths as one batch (B, P) padded on the right, and their lengths (B,)."""
    if count < 1:
        raise BadInput(f"count={count} must be at least 1: how many tokens to write after the prompt.")
    if not prompts or any(len(prompt) == 0 for prompt in prompts):
        raise BadInput("A prompt is empty: give at least one token to continue.")
    longest = max(len(prompt) for prompt in prompts)
    # The last token written is never read back, so it needs no room.
    if longest + count - 1 > model.geometry.length:
        raise BadInput(
            f"A prompt of {longest} tokens and {count} more exceed the model's length of "
            f"{model.geometry.length}: shorten one of them."
        )
    for prompt in prompts:
        model.check_tokens(prompt)
    padded = np.zeros((len(prompts), longest), np.int32)
    for row, prompt in zip(padded, prompts, strict=True):
        row[: len(prompt)] = prompt
    return jnp.asarray(padded), jnp.asarray([len(prompt) for prompt in prompts], jnp.int32)
