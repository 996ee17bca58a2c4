"""The contract between a model and an attention mechanism.

A *mixer* turns x (B, T, D) into y (B, T, D). One call serves training, prefill and decoding:

    y, state = mixer(x, layout, state)

- training: `state=None`, the whole sequence at once;
- prefill: the empty state of `mixer.init_state(batch)` and a prompt;
- decoding: the state so far and T = 1.

Splitting a sequence anywhere equals not splitting it; padding leaves the state untouched, row by
row; a new segment starts from the empty state. What a mechanism is not defined for, its
`Capability` refuses with the reason.

Shapes, here and everywhere: B batch, T query length, S key length, N query heads, K key-value
heads, H head size, D width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp
from flax import nnx

from transformer_jax.errors import BadInput
from transformer_jax.kernels.choice import Execution
from transformer_jax.parallel.mesh import cuts_sequence
from transformer_jax.parallel.sequence import require_divisible

State = dict[str, Any]
Mode = Literal["causal", "bidirectional", "cross", "padding", "packing", "decoding"]
MODES: tuple[Mode, ...] = ("causal", "bidirectional", "cross", "padding", "packing", "decoding")


class Buffer(nnx.Variable):
    """What is neither learned nor state (random features, block patterns): checkpointed, not trained, and
    moved by `Mixer.renew` alone."""


@dataclass(frozen=True)
class Capability:
    """What a mechanism is defined for.

    Attributes:
      refused: mode -> the sentence that says why it is undefined. Every other mode is defined.
      sequence: how a sequence is spread over devices. "parallel": each computes its own shard and tells the
        others what they need of it. "gathered": each holds the streams of whole sequences, and computes
        them as one device would. "serial": one shard after the other. "refused": not at all. None: as the
        class says that the mechanism is built on.
      notes: mode -> a convention worth knowing ("forward plus reversed").
    """

    refused: Mapping[Mode, str] = field(default_factory=dict)
    sequence: Literal["parallel", "gathered", "serial", "refused"] | None = None
    notes: Mapping[Mode, str] = field(default_factory=dict)

    def __post_init__(self):
        for mode in (*self.refused, *self.notes):
            if mode not in MODES:
                raise BadInput(f"A capability names the mode {mode!r}; use one of {', '.join(MODES)}.")

    def defined(self, mode: Mode) -> bool:
        return mode not in self.refused

    def require(self, mode: Mode, name: str) -> None:
        """Raises BadInput with the reason where `mode` is undefined."""
        if mode in self.refused:
            raise BadInput(f"{name} is not defined for {mode}: {self.refused[mode]}")


@dataclass(frozen=True, kw_only=True)
class Geometry:
    """What a model tells each of its mixers.

    Attributes:
      width: D, of the residual stream.
      heads: N. kv_heads: K, a divisor of N (K = N: multi-head, K = 1: multi-query).
      head_size: H.
      length: the longest sequence, in tokens; it sizes caches and learned projections of time.
      causal: whether a token sees only what came before it.
      rotary: base of the rotary embedding, None for none.
      dtype: of the computation; parameters are stored in float32.
      execution: a kernel of the device where one can, or what else was asked for (`kernels.choice`).
    """

    width: int
    heads: int = 1
    kv_heads: int | None = None
    head_size: int | None = None
    length: int = 2048
    causal: bool = True
    rotary: float | None = None
    dtype: str = "float32"
    execution: Execution = "auto"

    def __post_init__(self):
        for name in ("width", "heads", "length", "kv_heads", "head_size"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise BadInput(f"{name}={value} must be at least 1.")
        if self.head_size is None:
            if self.width % self.heads:
                raise BadInput(
                    f"width={self.width} does not divide into heads={self.heads}: choose a width that "
                    f"is a multiple of the heads, or give head_size."
                )
            object.__setattr__(self, "head_size", self.width // self.heads)
        if self.kv_heads is None:
            object.__setattr__(self, "kv_heads", self.heads)
        if self.heads % self.kv_heads:
            raise BadInput(
                f"heads={self.heads} is not a multiple of kv_heads={self.kv_heads}: each key-value head "
                f"serves the same number of query heads."
            )
        if self.rotary is not None and self.head_size % 2:
            raise BadInput(
                f"Rotary positions turn pairs of channels: head_size={self.head_size} must be even."
            )


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Layout:
    """Where each token stands.

    Attributes:
      positions: (B, T) int32, counted from 0 within each segment.
      segments: (B, T) int32 >= 0, or None where each row is one segment. Tokens of different
        segments do not see each other; a segment is contiguous.
      lengths: (B,) int32, valid tokens per row (the rest, on the right, is padding), or None.
    """

    positions: jax.Array
    segments: jax.Array | None = None
    lengths: jax.Array | None = None

    @staticmethod
    def plain(batch: int, length: int) -> Layout:
        """One unpadded segment per row."""
        return Layout(jnp.broadcast_to(jnp.arange(length), (batch, length)))

    @property
    def valid(self) -> jax.Array | None:
        """(B, T) bool, False at padding; None where nothing is padded."""
        if self.lengths is None:
            return None
        return jnp.arange(self.positions.shape[1])[None] < self.lengths[:, None]

    def starts(self, previous: jax.Array | None = None) -> jax.Array | None:
        """(B, T) bool: does a segment begin here? `previous` (B,) is the segment before the first token.

        None where no segment can begin: one segment per row and no state.
        """
        if self.segments is None:
            return None
        if previous is None:
            previous = self.segments[:, 0]
        before = jnp.concatenate([previous[:, None], self.segments[:, :-1]], axis=1)
        return self.segments != before

    def ends(self) -> jax.Array | None:
        """(B, T) bool: does another segment begin after this token? None where there is but one per row."""
        if self.segments is None:
            return None
        after = jnp.concatenate([self.segments[:, 1:], self.segments[:, -1:]], axis=1)
        return self.segments != after

    def last_segment(self, previous: jax.Array) -> jax.Array:
        """(B,) the segment of each row's last valid token; `previous` where a row has none."""
        if self.segments is None:
            return previous
        if self.lengths is None:
            return self.segments[:, -1]
        last = jnp.take_along_axis(self.segments, jnp.maximum(self.lengths - 1, 0)[:, None], axis=1)[:, 0]
        return jnp.where(self.lengths > 0, last, previous)


class Mixer(nnx.Module):
    """A mechanism: owns its projections, gates and short convolutions.

    A catalogue entry is a subclass with a `name`. Options of the mechanism are keyword arguments of
    its `__init__`, typed and with defaults: `__init__(self, geometry, *, window: int = 64, rngs)`.
    """

    name: ClassVar[str] = ""
    family: ClassVar[str] = ""
    paper: ClassVar[str] = ""
    time: ClassVar[str] = ""
    """Work of a forward pass in T, such as 'T²' or 'T·w'."""
    state: ClassVar[str] = ""
    """Decode state per sequence in T, such as 'T' or '1'."""
    capability: ClassVar[Capability] = Capability(sequence="gathered")
    small: ClassVar[Mapping[str, Any]] = {}
    """Options at which the conformance suite proves it: small, so that short sequences exercise all of it."""
    own_convolution: ClassVar[bool] = False
    """Whether it has a short convolution inside; a model then adds none before it."""
    tolerance: ClassVar[Mapping[str, float]] = {"float32": 1e-5, "bfloat16": 2e-2}
    """Error budget: ‖y − y64‖ / ‖y64‖ against the float64 definition, per dtype of the streams."""

    def __init_subclass__(cls, **kw):
        super().__init_subclass__(**kw)
        if cls.capability.sequence is None:
            cls.capability = replace(cls.capability, sequence=super(cls, cls).capability.sequence)

    def __init__(self, geometry: Geometry):
        self.capability.require("causal" if geometry.causal else "bidirectional", self.name)
        self.geometry = geometry

    def __call__(
        self, x: jax.Array, layout: Layout, state: State | None = None, context: jax.Array | None = None
    ) -> tuple[jax.Array, State | None]:
        """Mixes x (B, T, D) along T, or with `context` (B, S, D) as keys and values (cross-attention).

        Returns y (B, T, D) and the state after the last valid token (None where none was given).
        """
        raise NotImplementedError

    def init_state(self, batch: int) -> State:
        """The empty state of `batch` sequences. Raises BadInput where decoding is undefined."""
        self.capability.require("decoding", self.name)
        raise NotImplementedError

    def observe(self, x: jax.Array, layout: Layout) -> dict[str, jax.Array]:
        """What `renew` wants to know of a training batch x (B, T, D): sums over its tokens, so that those of
        microbatches add up to those of the batch. Here nothing."""
        return {}

    def renew(self, step: jax.Array, key: jax.Array, observed: Mapping[str, jax.Array]) -> None:
        """Moves the buffers after a training step; here it leaves them as they are.

        Training calls it inside the compiled step, once for each, however many microbatches it has;
        evaluation and decoding never do. What it does follows from its arguments alone, so that a resumed run
        equals an uninterrupted one.

        Args:
          step: () int32, the number of the step just made, from 0.
          key: a random key, another one for each step and each layer.
          observed: of `observe`, for the whole batch.
        """

    def flops(self, batch: int, length: int) -> int:
        """Matrix-product FLOPs (two per multiply-add) of one forward call without a state."""
        raise NotImplementedError

    def admit(self, layout: Layout, state: State | None, context: jax.Array | None) -> None:
        """Refuses what the capability record does not define."""
        asked: dict[Mode, bool] = {
            "cross": context is not None,
            "padding": layout.lengths is not None,
            "packing": layout.segments is not None,
            "decoding": state is not None,
        }
        for mode, wanted in asked.items():
            if wanted:
                self.capability.require(mode, self.name)
        if state is not None and not self.geometry.causal:
            raise BadInput(
                f"{self.name} keeps a decode state only when causal; this one sees both directions."
            )
        length = layout.positions.shape[1]
        if length > self.geometry.length:
            raise BadInput(
                f"A sequence of {length} tokens exceeds the model's length={self.geometry.length}: "
                f"raise length, or shorten the input."
            )
        if cuts_sequence() and state is None:
            if self.capability.sequence == "refused":
                raise BadInput(f"{self.name} does not spread a sequence over devices: set mesh.sequence=1.")
            require_divisible(length)
