"""The model: embed tokens, run the blocks, read out. Decoder and encoder are one module."""

from __future__ import annotations

from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from transformer_jax.attention.contract import Geometry, Layout, State
from transformer_jax.errors import BadInput
from transformer_jax.model.block import Block, normalization, placed
from transformer_jax.model.config import Transformer
from transformer_jax.model.positions import locate, nowhere, sinusoids
from transformer_jax.parallel.mesh import cuts_parameters
from transformer_jax.parallel.rules import assembled, constrain, named


def all_but_matrices(primitive, *inputs, **_) -> bool:
    """Keeps what a layer computes, but no matrix as it is used, assembled and cast: of all layers together
    those would be whole on every device. (What a layer computes of tokens has more than two axes.)"""
    moves = (
        "sharding_constraint",
        "convert_element_type",
        "reshape",
        "squeeze",
        "transpose",
        "slice",
        "split",
    )
    return primitive.name not in moves or inputs[0].ndim > 2


REMAT = {
    "none": all_but_matrices,
    "full": jax.checkpoint_policies.nothing_saveable,
    "dots": jax.checkpoint_policies.dots_saveable,
    "projections": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
}
"""What a layer keeps for the backward pass, by the value of `Transformer.remat`."""


def rows(table: nnx.Embed, at: jax.Array, name: str | None = None) -> jax.Array:
    """Rows (B, T, D) of a table. On a mesh its channels are gathered first: the result is cut in batch and
    time, and coming from channels it would have to be whole on each device in between."""
    matrix = constrain(table.embedding[...].astype(table.dtype), name)
    return placed(jnp.take(matrix, at, axis=0))


Observed = dict[str, Any]
"""Of one mixer, see `Mixer.observe`; stacked over the repeats of the layer pattern."""


class Period(nnx.Module):
    """One round of the layer pattern: a block for each of its mechanisms, in order."""

    def __init__(self, config: Transformer, geometry: Geometry, rngs: nnx.Rngs):
        self.blocks = nnx.List([Block(config, m, geometry, rngs=rngs) for m in config.mixers])

    def __call__(self, x, layout: Layout, states, key, observe: bool):
        keys = [None] * len(self.blocks) if key is None else jax.random.split(key, len(self.blocks))
        moved, observed = [], []
        for i, block in enumerate(self.blocks):
            x, state, seen = block(x, layout, None if states is None else states[i], keys[i], observe)
            moved.append(state)
            observed.append(seen)
        return x, (None if states is None else moved, observed)

    def renew(self, step: jax.Array, key: jax.Array, observed: list[Observed]) -> None:
        keys = jax.random.split(key, len(self.blocks))
        for block, key, seen in zip(self.blocks, keys, observed, strict=True):
            block.mixer.renew(step, key, seen)


def in_use(period: Period) -> Period:
    """With the matrices of its projections and MLPs as they are used."""
    graph, learned, rest = nnx.split(period, nnx.Param, ...)

    def use(parameter: nnx.Param) -> nnx.Param:
        _, *names = parameter.get_metadata()["axes"]  # of the stack of layers
        if len(names) != 2 or "embed" not in names:
            return parameter
        return parameter.replace(assembled(parameter[...], names))

    learned = jax.tree.map(use, learned, is_leaf=lambda x: isinstance(x, nnx.Param))
    return nnx.merge(graph, learned, rest)


class Model(nnx.Module):
    """Tokens (B, T) to logits: (B, T, outputs) for target "token", (B, outputs) for "sequence".

    Args:
      config: sizes and mechanisms.
      vocabulary: V, number of token ids. outputs: number of classes or tokens to score.
      features: where inputs are vectors (B, T, features) and not tokens, their size; V is then 0.
      target: whether each token or the whole sequence gets logits.
      causal: a decoder (each token sees its past) or an encoder.
      length: longest sequence, in tokens.
    """

    def __init__(
        self,
        config: Transformer,
        *,
        vocabulary: int,
        outputs: int,
        target: Literal["token", "sequence"],
        causal: bool,
        length: int,
        features: int | None = None,
        rngs: nnx.Rngs,
    ):
        self.config, self.vocabulary, self.outputs, self.target = config, vocabulary, outputs, target
        dtype = jnp.dtype(config.compute)
        self.geometry = Geometry(
            width=config.width,
            heads=config.heads,
            kv_heads=config.kv_heads,
            head_size=config.head_size,
            length=length,
            causal=causal,
            rotary=config.rotary_base if config.positions == "rotary" else None,
            dtype=config.compute,
            execution=config.execution,
        )
        # The sinusoidal table has entries of order 1: embeddings multiplied by √D (arXiv:1706.03762,
        # section 3.4) match it when they start at 1/√D.
        scale = config.width**-0.5 if config.positions == "sinusoidal" else 0.02
        init = nnx.initializers.normal(scale)
        embed = partial(nnx.Embed, features=config.width, dtype=dtype, embedding_init=init, rngs=rngs)
        if features is None:
            self.embed = embed(vocabulary, embedding_metadata=named("vocabulary embed"))
        else:
            read = named("- embed")
            self.embed = nnx.Linear(features, config.width, dtype=dtype, rngs=rngs, kernel_metadata=read)
        if config.positions == "learned":
            self.position = embed(length, embedding_metadata=named("- embed"))
        self.periods = jax.vmap(lambda r: Period(config, self.geometry, r))(rngs.split(self.repeats))
        for _, parameter in nnx.iter_graph(self.periods):
            if isinstance(parameter, nnx.Param):
                axes = parameter.get_metadata().get("axes") or (None,) * (parameter.ndim - 1)
                parameter.set_metadata(axes=("layers", *axes))
        self.norm = normalization(config, rngs) if config.norm_position == "pre" else None
        self.tied = config.embeddings == "tied" and target == "token"
        if self.tied and outputs != vocabulary:
            raise BadInput(
                f"Tied embeddings need as many outputs as tokens, here {outputs} and {vocabulary}: "
                f'set model.embeddings to "untied".'
            )
        through = target == "sequence" and config.classifier == "mlp"
        vector = config.hidden if through else config.width
        across = partial(nnx.Linear, dtype=dtype, rngs=rngs, kernel_metadata=named("- embed"))
        self.classifier = across(config.width, vector) if through else None
        if not self.tied:
            self.head = nnx.Linear(
                vector,
                outputs,
                use_bias=False,
                dtype=dtype,
                rngs=rngs,
                kernel_metadata=named("embed vocabulary"),
            )
        self.dropout = nnx.Dropout(config.dropout)

    def __call__(
        self,
        tokens: jax.Array,
        *,
        lengths: jax.Array | None = None,
        segments: jax.Array | None = None,
        state: State | None = None,
        dropout: jax.Array | None = None,
    ) -> tuple[jax.Array, State | None]:
        """tokens (B, T) int32 -> float32 logits, and the state after the last valid token.

        Args:
          lengths: (B,) valid tokens per row; the rest is padding.
          segments: (B, T) packed documents that must not see each other.
          state: of `init_state`, or of the call before; None when training.
          dropout: a PRNG key; None turns dropout off.
        """
        logits, state, _ = self._through(tokens, lengths, segments, state, dropout)
        return logits, state

    def training_pass(
        self,
        tokens: jax.Array,
        *,
        lengths: jax.Array | None = None,
        segments: jax.Array | None = None,
        dropout: jax.Array,
    ) -> tuple[jax.Array, list[Observed]]:
        """The logits of a training batch, and what the mixers observe of it for `renew`."""
        logits, _, observed = self._through(tokens, lengths, segments, None, dropout, observe=True)
        return logits, observed

    def renew(self, step: jax.Array, key: jax.Array, observed: list[Observed]) -> None:
        """Moves the buffers of every layer after a training step (`Mixer.renew`)."""

        def one(period: Period, key: jax.Array, observed: list[Observed]) -> Period:
            period.renew(step, key, observed)
            return period

        self.periods = jax.vmap(one)(self.periods, jax.random.split(key, self.repeats), observed)

    def _through(self, tokens, lengths, segments, state, dropout, observe: bool = False):
        batch, length = tokens.shape[:2]
        before = None if state is None else state["place"]
        layout, place = locate(length, batch, segments=segments, lengths=lengths, before=before)
        keys = (None, None) if dropout is None else tuple(jax.random.split(dropout))
        x = self.embedded(tokens, layout)
        x = self.dropout(x, deterministic=dropout is None, rngs=keys[0])
        states = None if state is None else state["blocks"]
        x, (blocks, observed) = self.run(placed(x), layout, states, keys[1], observe)
        if self.norm is not None:
            x = self.norm(x)
        logits = self.read_out(x, layout)
        return logits, None if state is None else {"place": place, "blocks": blocks}, observed

    def embedded(self, tokens: jax.Array, layout: Layout) -> jax.Array:
        """(B, T) -> (B, T, D): what the first block reads."""
        vectors = isinstance(self.embed, nnx.Linear)
        x = placed(self.embed(tokens)) if vectors else rows(self.embed, tokens, "vocabulary")
        if self.config.positions == "learned":
            x = x + rows(self.position, layout.positions)
        elif self.config.positions == "sinusoidal":
            x = x * self.config.width**0.5 + sinusoids(layout.positions, self.config.width).astype(x.dtype)
        return x

    def run(self, x: jax.Array, layout: Layout, states, key: jax.Array | None, observe: bool = False):
        """The blocks: one scan over the repeats of the layer pattern, so that depth costs no compile time."""
        keys = None if key is None else jax.random.split(key, self.repeats)

        def body(x, layer):
            period, states, key = layer
            return in_use(period)(x, layout, states, key, observe)

        kept = REMAT[self.config.remat]
        if self.config.remat != "none":
            body = jax.checkpoint(body, policy=kept)
        elif cuts_parameters():  # no barriers: the scan keeps the passes apart
            body = jax.checkpoint(body, policy=kept, prevent_cse=False)
        return jax.lax.scan(body, x, (self.periods, states, keys))

    def read_out(self, x: jax.Array, layout: Layout) -> jax.Array:
        if self.target == "sequence":
            if self.config.pooling == "first":
                x = x[:, 0]
            elif layout.valid is None:
                x = x.mean(1)
            else:
                valid = layout.valid[..., None]
                # A row that is all padding has nothing to average: it reads out zeros.
                x = jnp.where(valid, x, 0).sum(1) / jnp.maximum(valid.sum(1), 1).astype(x.dtype)
            if self.classifier is not None:
                x = jax.nn.relu(self.classifier(x))
        if self.tied:
            matrix = assembled(self.embed.embedding[...].astype(x.dtype), ("vocabulary", "embed")).T
        else:
            matrix = assembled(self.head.kernel[...].astype(x.dtype), ("embed", "vocabulary"))
        # Summed and kept in float32: logits rounded to bfloat16 would cost hundredths of a nat, and tie.
        logits = jnp.matmul(x, matrix, preferred_element_type=jnp.float32)
        return constrain(logits, "batch", *(("sequence",) if self.target == "token" else ()), "vocabulary")

    def init_state(self, batch: int) -> State:
        """The empty state of `batch` sequences. Raises BadInput where a mechanism has none."""

        def one(period: Period):
            return [block.init_state(batch) for block in period.blocks]

        return {"place": nowhere(batch), "blocks": jax.vmap(one)(self.periods)}

    @property
    def repeats(self) -> int:
        """How often the layer pattern is repeated."""
        return self.config.layers // len(self.config.mixers)

    @property
    def mixers(self) -> list:
        """One mixer of each kind in the layer pattern (their parameters stacked over the repeats)."""
        return [block.mixer for block in self.periods.blocks]

    def notes(self) -> dict[str, str]:
        """What a report must name beside each mechanism: its conventions, and a convolution of its own."""
        notes: dict[str, str] = {}
        for mixer in self.mixers:
            direction = "causal" if self.geometry.causal else "bidirectional"
            said = [mixer.capability.notes.get(direction, "")]
            if mixer.own_convolution:
                said.append("brings its own short convolution")
            notes[mixer.name] = "; ".join(filter(None, said))
        return {name: said for name, said in notes.items() if said}

    def state_size(self) -> int | None:
        """Numbers held per sequence while decoding at full length; None where decoding is undefined."""
        kept = self._kept_numbers()
        return None if kept is None else sum(leaf.size for leaf in kept)

    def state_bytes(self) -> int | None:
        """Bytes of these numbers."""
        kept = self._kept_numbers()
        return None if kept is None else sum(leaf.size * leaf.dtype.itemsize for leaf in kept)

    def _kept_numbers(self) -> list[jax.ShapeDtypeStruct] | None:
        try:
            state = jax.eval_shape(lambda model: model.init_state(1), self)
        except BadInput:
            return None
        return [leaf for leaf in jax.tree.leaves(state["blocks"]) if jnp.issubdtype(leaf.dtype, jnp.inexact)]

    def parameters(self) -> int:
        """Number of learned numbers."""
        return sum(leaf.size for leaf in jax.tree.leaves(nnx.state(self, nnx.Param)))

    def check_tokens(self, tokens: np.ndarray) -> None:
        """Raises BadInput where a token id lies outside the vocabulary."""
        low, high = int(np.min(tokens)), int(np.max(tokens))
        if low < 0 or high >= self.vocabulary:
            raise BadInput(
                f"Token id {low if low < 0 else high} is outside the vocabulary of {self.vocabulary} "
                f"(0 to {self.vocabulary - 1}): encode the input with the task's own tokenizer."
            )
