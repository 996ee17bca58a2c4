"""A model of a few lines with the interface of the real one: it compiles in a moment."""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from flax import nnx

from transformer_jax.attention.contract import Buffer
from transformer_jax.data.tasks.copy import Copy
from transformer_jax.train.config import Train
from transformer_jax.train.run import Run


@dataclass(frozen=True, kw_only=True)
class ToyConfig:
    width: int = 8
    dropout: float = 0.0


class Toy(nnx.Module):
    """Embeds, averages over the past, reads out; counts in a buffer the microbatches it is trained on."""

    def __init__(self, config: ToyConfig, vocabulary: int, rngs: nnx.Rngs):
        self.embed = nnx.Embed(vocabulary, config.width, rngs=rngs)
        self.hidden = nnx.Linear(config.width, config.width, rngs=rngs)
        self.out = nnx.Linear(config.width, vocabulary, rngs=rngs)
        self.norm = nnx.LayerNorm(config.width, rngs=rngs)
        self.dropout = nnx.Dropout(config.dropout)
        self.calls = Buffer(jnp.zeros((), jnp.int32))

    def __call__(self, tokens, *, lengths=None, segments=None, state=None, dropout=None):
        x = self.embed.embedding[...][tokens]  # in the precision of the parameters, float64 in some tests
        x = jnp.cumsum(x, axis=1) / jnp.arange(1, x.shape[1] + 1, dtype=x.dtype)[None, :, None] + x
        x = self.dropout(jnp.tanh(self.hidden(self.norm(x))), deterministic=dropout is None, rngs=dropout)
        return self.out(x), None

    def training_pass(self, tokens, *, lengths=None, segments=None, dropout):
        return self(tokens, dropout=dropout)[0], jnp.ones((), jnp.int32)

    def renew(self, step, key, observed):
        self.calls[...] = self.calls[...] + observed

    def notes(self):
        return {"toy": "a stand-in"}

    def state_size(self):
        return None

    state_bytes = state_size


def toy_model(run: Run, key=None) -> Toy:
    return Toy(run.model, run.task.vocabulary, nnx.Rngs(run.seed if key is None else key))


def toy_run(*, seed=0, dropout=0.0, width=8, length=16, **train) -> Run:
    settings = {"steps": 20, "batch": 8, "learning_rate": 1e-2, "log_every": 5} | train
    task = Copy(length=length, symbols=5, validation_examples=12, test_examples=10)
    return Run(task=task, model=ToyConfig(width=width, dropout=dropout), train=Train(**settings), seed=seed)


def arrays(tree) -> list:
    """The leaves as numpy arrays, random keys as integers."""
    import numpy as np

    return [
        np.asarray(jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x)
        for x in jax.tree.leaves(tree)
    ]
