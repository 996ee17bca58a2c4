"""A mixer around a core: x → streams → core → y, where the core alone mixes tokens."""

from __future__ import annotations

from typing import ClassVar

import jax
import jax.numpy as jnp
from flax import nnx

from transformer_jax.attention.contract import Layout, Mixer, State
from transformer_jax.attention.convolution import ShortConvolution
from transformer_jax.errors import BadInput
from transformer_jax.kernels.choice import executing
from transformer_jax.parallel.mesh import cuts_sequence, on
from transformer_jax.parallel.rules import constrain, named
from transformer_jax.parallel.sequence import gathered, whole_rows

Streams = dict[str, jax.Array]


class CoreMixer(Mixer):
    """Its projections make streams (B, T, heads, …); a core mixes them along T; `finish` joins the heads.

    A subclass gives the meaning, `definition`, on the streams of one head of one plain sequence, and
    an execution, `core`, on all of them; an engine mostly has the second.
    """

    no_matrix: ClassVar[str] = ""
    """Why there is no effective matrix, the definition not being linear in v; empty where there is one."""

    def linear(
        self, inputs: int, outputs: int, rngs: nnx.Rngs, *, axes: str = "embed heads", bias: bool = False
    ) -> nnx.Linear:
        """A projection, by default of x to the channels of heads; `axes` name those of its matrix
        (`transformer_jax.parallel.rules`)."""
        dtype = jnp.dtype(self.geometry.dtype)
        metadata = {"kernel_metadata": named(axes), "bias_metadata": named(axes.split()[1])}
        return nnx.Linear(inputs, outputs, use_bias=bias, dtype=dtype, rngs=rngs, **metadata)

    def joining(self, inputs: int, rngs: nnx.Rngs) -> nnx.Linear:
        """The projection of all heads' channels to y."""
        return self.linear(inputs, self.geometry.width, rngs, axes="heads embed")

    @property
    def mixed_heads(self) -> int:
        """How many heads are mixed each by itself; streams with fewer are shared among them. A mechanism that
        mixes every channel by itself has as many as channels."""
        return self.geometry.heads

    def definition(self, **streams: jax.Array) -> jax.Array:
        """What this mechanism computes, in the paper's notation, for one head of one sequence.

        Args:
          streams: each of `self.streams` under its name, as (T, ...), and each of `self.weights`, as (...).
            v is (S, any): unless it says `no_matrix`, the mechanism is linear in v, so that v = I
            gives the effective matrix.

        Returns:
          (T, size of v). Written for eyes and float64, never for speed.
        """
        raise NotImplementedError

    def streams(
        self, x: jax.Array, layout: Layout, state: State | None = None, context: jax.Array | None = None
    ) -> tuple[Streams, State]:
        """Projects x (B, T, D), and `context` (B, S, D), to streams (B, T or S, heads, …); also the part of
        the state that this moved."""
        raise NotImplementedError

    def weights(self) -> Streams:
        """Learned arrays (heads, …) that the core reads besides, as a serial one of its hidden state; here
        none."""
        return {}

    def selection(self, streams: Streams, layout: Layout) -> Streams:
        """What a mechanism that selects by content has chosen, as streams that `core` and `definition` follow
        where they are given. Rounding may turn a near tie: in low precision both are compared on one
        choice."""
        return {}

    def core(self, streams: Streams, layout: Layout, state: State | None) -> tuple[jax.Array, State]:
        """The execution: streams → (B, T, heads, size of v), and the part of the state it moved."""
        raise NotImplementedError

    def placed_core(self, streams: Streams, layout: Layout, state: State | None) -> tuple[jax.Array, State]:
        """`core`, with the sequence spread over devices as the record says. An engine that is "parallel" or
        "serial" does that itself; others, and whatever goes on from a state, are run on whole sequences."""
        if not cuts_sequence() or (state is None and self.capability.sequence != "gathered"):
            return self.core(streams, layout, state)
        if state is None:
            # What a core learns comes in beside its streams: a shard cannot read what it closes over.
            graph, arrays = nnx.split(self)

            def core(arrays, streams, layout):
                return nnx.merge(graph, arrays).core(streams, layout, None)[0]

            return whole_rows(core, streams, layout, whole=arrays), {}
        streams, layout = gathered((streams, layout))
        with on(None):
            return self.core(streams, layout, state)

    def core_flops(self, batch: int, length: int) -> int:
        """Matrix-product FLOPs of `core`."""
        raise NotImplementedError

    def after(self, o: jax.Array, streams: Streams) -> jax.Array:
        """What each token makes of its o (B, T, heads, …) with its own streams, as a gate does; here
        nothing."""
        return o

    def finish(self, o: jax.Array, x: jax.Array) -> jax.Array:
        """Joins the heads: o (B, T, heads, …) → (B, T, D)."""
        raise NotImplementedError

    def __call__(self, x, layout, state=None, context=None):
        self.admit(layout, state, context)
        streams, moved = self.streams(x, layout, state, context)
        if context is not None:
            if self.geometry.causal:
                raise BadInput(
                    f"{self.name} of a context has no before and after: build the layer with causal=False."
                )
            # Lengths and segments are those of x, not of the context: all of the context is seen.
            layout = Layout(layout.positions)
        streams = {name: on_heads(s) for name, s in streams.items()}
        with executing(self.name, self.geometry.execution):
            o, core_moved = self.placed_core(streams, layout, state)
        o = on_heads(self.after(o, streams))
        return self.finish(o, x), None if state is None else {**state, **moved, **core_moved}

    def projection_flops(self, batch: int, length: int) -> int:
        """Matrix-product FLOPs outside `core`."""
        raise NotImplementedError

    def flops(self, batch, length):
        convolutions = (part for part in vars(self).values() if isinstance(part, ShortConvolution))
        convolved = sum(part.flops(batch, length) for part in convolutions)
        return self.projection_flops(batch, length) + convolved + self.core_flops(batch, length)


def on_heads(x: jax.Array) -> jax.Array:
    """A stream (B, T, heads, …), on a mesh with its heads where their parameters are."""
    return constrain(x, "batch", "sequence", "heads") if x.ndim >= 3 else x


def repeat_heads(x: jax.Array, heads: int) -> jax.Array:
    """(B, S, K, H) → (B, S, N, H): query head n reads key-value head n // (N / K)."""
    return x if x.shape[2] == heads else jnp.repeat(x, heads // x.shape[2], axis=2)


def linear_flops(rows: int, *layers: nnx.Linear) -> int:
    """Matrix-product FLOPs of layers that are each applied to `rows` vectors."""
    return sum(2 * rows * layer.in_features * layer.out_features for layer in layers)
