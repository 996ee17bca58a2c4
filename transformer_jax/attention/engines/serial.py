"""A recurrence that is not linear in its state, token after token, and a mixer whose core is one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import nnx

from transformer_jax.attention.contract import Capability, Geometry, State
from transformer_jax.attention.core import CoreMixer, Streams, linear_flops
from transformer_jax.attention.engines.chunks import cut, in_chunks, real_tokens
from transformer_jax.attention.engines.scan import like
from transformer_jax.parallel.mesh import cuts_sequence
from transformer_jax.parallel.sequence import AXIS, Shards, rank, shift


def serial(
    step: Callable[[Any, Any], tuple[Any, jax.Array]],
    streams: Any,
    state: Any,
    empty: Any,
    *,
    starts: jax.Array | None = None,
    valid: jax.Array | None = None,
    chunk: int = 64,
) -> tuple[jax.Array, Any]:
    """o_t of (state_t, o_t) = step(state_{t−1}, streams_t), and the state after the last valid token.

    The backward pass keeps the states between chunks and recomputes those inside of one after the other.

    Args:
      streams: a tree of (B, T, …). state: a tree of (B, …), before the first token; empty: the like of it.
      starts: (B, T) bool, where a new segment begins: it starts from `empty`.
      valid: (B, T) bool; padding leaves the state as it is.
      chunk: tokens at most; no result depends on it.

    Returns:
      (B, T, …), and the state.
    """

    def choose(condition, this, other):
        return jax.tree.map(lambda x, y: jnp.where(like(condition, x), x, y), this, other)

    def token(state, x):
        streams, starts, valid = x
        before = state if starts is None else choose(starts, empty, state)
        after, o = step(before, streams)
        return after if valid is None else choose(valid, after, state), o

    def body(state, x):
        state, o = jax.lax.scan(token, state, jax.tree.map(lambda x: x.swapaxes(0, 1), x))
        return state, o.swapaxes(0, 1)

    length = jax.tree.leaves(streams)[0].shape[1]
    streams = (streams, starts, real_tokens(valid, length, chunk))
    return in_chunks(body, streams, state, length=length, chunk=chunk)


class SerialMixer(CoreMixer):
    """A recurrent network: gates that read x_t by W and, by R, the hidden state h_{t−1} that they make.

    Streams are W x_t + b, one per gate; R (heads, gates, size, size) is among the weights. Position is in the
    order: a model's rotary embedding is not applied.
    """

    family = "recurrent network"
    time = "T"
    state = "1"
    no_matrix = "its gates read the hidden state, so that it is linear in none of its streams."
    capability = Capability(
        refused={
            "bidirectional": "its hidden state runs one way; two of them, each with weights of its own, are "
            "another mechanism.",
            "cross": "its gates need inputs and hidden states on one time line.",
        },
        sequence="serial",
    )
    gates: ClassVar[str] = ""
    """Names of the streams, a letter each."""
    memory: ClassVar[tuple[str, ...]] = ("h",)
    """What is carried from token to token, each (B, heads, size); h is what R reads."""
    chunk: ClassVar[int] = 64

    def __init__(self, geometry: Geometry, *, biases: Mapping[str, Any] | None = None, rngs: nnx.Rngs):
        """`biases` are those of gates that do not start at 0: (heads, size), or broadcasting to it."""
        super().__init__(geometry)
        g, heads = geometry, self.mixed_heads
        self.size = g.heads * g.head_size // heads
        shape = (heads, self.size)
        start = jnp.stack([jnp.broadcast_to((biases or {}).get(x, 0.0), shape) for x in self.gates])
        self.inputs = nnx.Linear(
            g.width,
            start.size,
            bias_init=lambda key, shape, dtype=None: start.reshape(shape),
            dtype=jnp.dtype(g.dtype),
            rngs=rngs,
        )
        bound = self.size**-0.5
        blocks = (heads, len(self.gates), self.size, self.size)
        self.recurrent = nnx.Param(jax.random.uniform(rngs.params(), blocks, minval=-bound, maxval=bound))
        self.out = self.joining(g.heads * g.head_size, rngs)

    def cell(self, memory: State, x: Streams, y: Streams, weights: Streams) -> tuple[State, jax.Array]:
        """One token: x is W x_t + b and y is R h_{t−1} of each gate, (B, heads, size); memory and h_t.

        `weights` are those of `weights()`, of the heads that are here: a cell that read them from the module
        would have all of them, and on a mesh a shard cannot.
        """
        raise NotImplementedError

    def streams(self, x, layout, state=None, context=None):
        gates = self.inputs(x).reshape(*x.shape[:2], len(self.gates), self.mixed_heads, self.size)
        return {name: gates[:, :, n] for n, name in enumerate(self.gates)}, {}

    def weights(self):
        return {"R": self.recurrent[...].astype(self.exact)}

    @property
    def exact(self):
        """Of memory and arithmetic: float32 at least."""
        return jnp.promote_types(jnp.float32, jnp.dtype(self.geometry.dtype))

    def core(self, streams, layout, state):
        starts = layout.starts(None if state is None else state["segment"])
        inputs = streams, self.weights(), (starts, layout.valid)
        if state is None and cuts_sequence():
            shards = Shards.of(layout.positions.shape[0], self.mixed_heads)
            where = shards.streams(streams), shards.weights(inputs[1]), shards.streams(inputs[2])
            placed, out = zip(inputs, where, strict=True), shards.of_heads(self.mixed_heads)
            return shards.run(self._in_turn, *placed, out=out), {}
        memory = None if state is None else {name: state[name] for name in state if name != "segment"}
        o, memory = self._run(*inputs, memory)
        return o, {} if state is None else memory | {"segment": layout.last_segment(state["segment"])}

    def _run(self, streams, weights, tokens, memory: State | None = None) -> tuple[jax.Array, State]:
        starts, valid = tokens
        empty = self.empty(*streams[self.gates[0]].shape[::2])

        def step(memory, x):
            y = jnp.einsum("bnh,ngkh->gbnk", memory["h"], weights["R"])
            x = {k: v.astype(self.exact) for k, v in x.items()}
            return self.cell(memory, x, dict(zip(self.gates, y, strict=True)), weights)

        memory = empty if memory is None else memory
        return serial(step, streams, memory, empty, starts=starts, valid=valid, chunk=self.chunk)

    def _in_turn(self, streams, weights, tokens) -> jax.Array:
        """`_run` of a shard, from the memory that the one before it leaves. Each runs once to pass its own
        on, and once more, all together, for what it puts out: of the waiting only memories are kept."""

        def turn(mine, n):
            after = jax.lax.cond(
                rank() == n,
                lambda mine: self._run(streams, weights, tokens, mine)[1],
                lambda mine: mine,
                mine,
            )
            arrived = shift(after)
            return jax.tree.map(lambda mine, new: jnp.where(rank() == n + 1, new, mine), mine, arrived), None

        empty = self.empty(*streams[self.gates[0]].shape[::2])
        turns = jnp.arange(jax.lax.axis_size(AXIS) - 1)
        mine, _ = jax.lax.scan(jax.checkpoint(turn, prevent_cse=False), empty, turns)
        return self._run(streams, weights, tokens, mine)[0]

    def empty(self, batch: int, heads: int) -> State:
        """The memory before the first token."""
        return {name: jnp.zeros((batch, heads, self.size), self.exact) for name in self.memory}

    def init_state(self, batch):
        self.capability.require("decoding", self.name)
        return self.empty(batch, self.mixed_heads) | {"segment": jnp.full((batch,), -1, jnp.int32)}

    def finish(self, o, x):
        return self.out(o.reshape(*o.shape[:2], -1).astype(x.dtype))

    def core_flops(self, batch, length):
        chunks, chunk = cut(length, self.chunk)
        return 2 * batch * chunks * chunk * self.recurrent.size

    def projection_flops(self, batch, length):
        return linear_flops(batch * length, self.inputs, self.out)
