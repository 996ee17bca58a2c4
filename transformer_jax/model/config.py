"""What a model is, said once: sizes, blocks, positions, and which mechanism mixes in which layer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from transformer_jax.attention import catalogue
from transformer_jax.errors import BadInput, unknown
from transformer_jax.kernels.choice import Execution
from transformer_jax.overrides import check_fields, require


@dataclass(frozen=True)
class Mechanism:
    """A mechanism of the catalogue and the options it is built with."""

    name: str
    options: tuple[tuple[str, Any], ...] = ()

    def __post_init__(self):
        known = catalogue.options(catalogue.find(self.name))
        for option, value in self.options:
            if option not in known:
                raise unknown(f"option of {self.name}", option, known)
            require(f"{self.name}.{option}", known[option][0], value)

    def __str__(self) -> str:
        """The name, with the options that were chosen: `sliding_window(window=64)`."""
        chosen = ", ".join(f"{option}={value}" for option, value in self.options)
        return f"{self.name}({chosen})" if chosen else self.name


def mechanism(name: str, **options: Any) -> Mechanism:
    """`Mechanism` with its options as keywords."""
    return Mechanism(name, tuple(sorted(options.items())))


@dataclass(frozen=True, kw_only=True)
class Transformer:
    """A decoder or encoder; the task decides which, and the sizes of vocabulary and output.

    Attributes:
      mixers: one mechanism, or a pattern of them that repeats over the layers (a hybrid).
      layers: number of blocks, a multiple of the pattern's length.
      width: D. heads: N. kv_heads: K (default N). head_size: H (default D / N).
      mlp: after each mixer: none, GELU (arXiv:1606.08415) or SwiGLU (arXiv:2002.05202).
      mlp_ratio: hidden size over D; SwiGLU takes two thirds of it, so that parameters match.
      norm: LayerNorm (arXiv:1607.06450) or RMSNorm (arXiv:1910.07467).
      norm_position: before each branch, or after each residual sum as in arXiv:1706.03762.
      positions: none; sinusoidal or learned, added to the embeddings; rotary, on queries and keys inside
        the mixers. Linear attentions turn them before their feature map (arXiv:2104.09864 turns after it, in
        the numerator alone). retention, partial_rotary and multi_head_latent turn them in every model;
        mechanisms whose order is in a convolution, a gate or a recurrence of their own never do.
      dropout: rate, on embeddings and on each branch.
      embeddings: whether the output layer shares the input embedding's matrix.
      convolution: taps of a short causal convolution before each mixer (arXiv:2402.18668), 0 for
        none. A mechanism that brings its own gets no second one.
      pooling: how an encoder becomes one vector, for classification. classifier: how that vector becomes
        logits: by one matrix, or through a hidden layer of `hidden` channels and a ReLU.
      remat: what the backward pass recomputes instead of keeping it: nothing of tokens; each layer whole
        ("full"); all but matrix products ("dots"), or all but products with parameters ("projections").
      compute: dtype of activations; parameters are float32.
      execution: of the mixing: a kernel of the device where one can do it and otherwise what XLA compiles
        ("auto"), one of the two ("kernel", which refuses where none can; "xla"), or a TPU's kernel
        interpreted, on any device. It changes no result but for rounding.
    """

    mixers: tuple[Mechanism, ...] = (Mechanism("full"),)
    layers: int = 2
    width: int = 64
    heads: int = 1
    kv_heads: int | None = None
    head_size: int | None = None
    mlp: Literal["none", "gelu", "swiglu"] = "gelu"
    mlp_ratio: float = 4.0
    norm: Literal["layer", "rms"] = "layer"
    norm_position: Literal["pre", "post"] = "pre"
    positions: Literal["none", "sinusoidal", "learned", "rotary"] = "learned"
    rotary_base: float = 10_000.0
    dropout: float = 0.0
    embeddings: Literal["tied", "untied"] = "tied"
    convolution: int = 0
    pooling: Literal["mean", "first"] = "mean"
    classifier: Literal["linear", "mlp"] = "linear"
    remat: Literal["none", "full", "dots", "projections"] = "none"
    compute: Literal["float32", "bfloat16"] = "float32"
    execution: Execution = "auto"

    def __post_init__(self):
        check_fields(self, "model")
        if not self.mixers:
            raise BadInput("model.mixers is empty: name at least one mechanism.")
        if self.layers < 1 or self.layers % len(self.mixers):
            raise BadInput(
                f"model.layers={self.layers} must be a positive multiple of the pattern of "
                f"{len(self.mixers)} that repeats over the layers."
            )
        if not 0 <= self.dropout < 1:
            raise BadInput(f"model.dropout={self.dropout} must be at least 0 and below 1.")
        if not (self.mlp_ratio > 0 and self.rotary_base > 0):
            raise BadInput(
                f"model.mlp_ratio={self.mlp_ratio} and model.rotary_base={self.rotary_base} must be above 0."
            )
        if self.convolution < 0:
            raise BadInput(f"model.convolution={self.convolution} must be 0 (none) or a number of taps.")

    @property
    def hidden(self) -> int:
        """Channels inside an MLP."""
        return round(self.width * self.mlp_ratio * (2 / 3 if self.mlp == "swiglu" else 1))
