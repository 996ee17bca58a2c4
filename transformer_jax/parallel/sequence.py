"""A sequence cut over devices: the way into one device's part of a program, and what parts tell each other.

Outside, arrays are whole and the compiler places them. Inside of `Shards.run` a device holds its rows of
the batch, one of n contiguous shards of time and, where they divide, its heads: (B, T, N, …) is there
(B / (data · fsdp), T / n, N / tensor, …). Nothing in there sees a mesh, so whatever runs on one device runs
on a shard; the functions below carry to it what lies on other shards.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from transformer_jax.errors import BadInput
from transformer_jax.parallel.mesh import BATCH, current, cuts_sequence, on

AXIS = "sequence"


@dataclass(frozen=True)
class Shards:
    """How the streams of a program are cut.

    Attributes:
      batch: the axes that cut the batch, None where it does not divide.
      heads: the axis that cuts heads, None where they do not divide.
    """

    mesh: Mesh
    batch: tuple[str, ...] | None
    heads: str | None

    @classmethod
    def of(cls, batch: int, *heads: int) -> Shards:
        """For streams of so many rows, and heads (a stream of one head is everyone's)."""
        mesh = current()
        assert mesh is not None
        rows, parts = math.prod(mesh.shape[axis] for axis in BATCH), mesh.shape["tensor"]
        cut = parts > 1 and all(n == 1 or n % parts == 0 for n in heads)
        return cls(mesh, BATCH if batch % rows == 0 else None, "tensor" if cut else None)

    @property
    def count(self) -> int:
        """n, of the sequence."""
        return self.mesh.shape[AXIS]

    def streams(self, tree: Any, time: str | None = AXIS) -> Any:
        """Where (T,), (B, T) and (B, T, N, …) are cut; with time=None each shard has all of it."""

        def places(x):
            if x.ndim < 2:
                return P(time)
            return P(self.batch, time, *([self._heads(x.shape[2])] if x.ndim > 2 else []))

        return jax.tree.map(places, tree)

    def of_heads(self, count: int) -> P:
        """Where (B, T, N, …) with so many heads is cut."""
        return P(self.batch, AXIS, self._heads(count))

    def weights(self, tree: Any) -> Any:
        """Where (N, …) and scalars are cut."""
        return jax.tree.map(lambda x: P(self._heads(x.shape[0])) if x.ndim else P(), tree)

    def _heads(self, count: int) -> str | None:
        return self.heads if self.heads and count % self.mesh.shape[self.heads] == 0 else None

    def run(self, f: Callable, *inputs: tuple[Any, Any], out: Any) -> Any:
        """f of each device's part of inputs, given as pairs (array or tree, where it is cut)."""
        arguments, specs = zip(*inputs, strict=True)

        def alone(*arguments):
            with on(None):
                return f(*arguments)

        # Unchecked: the scans of the engines start from constants, which the check takes for the same on
        # all devices, and then refuses what comes out of the loop.
        mapped = jax.shard_map(alone, mesh=self.mesh, in_specs=specs, out_specs=out, check_vma=False)
        return mapped(*arguments)


def along_time(f: Callable, *streams: Any, whole: Any) -> jax.Array:
    """f(*streams, whole) of the shards of streams (B, T, …), for what is element-wise but for a few tokens
    that it asks of its neighbours: time is cut by hand, the compiler goes on placing batch and channels."""
    for x in jax.tree.leaves(streams):
        require_divisible(x.shape[1])
    specs, mesh = (*(P(None, AXIS) for _ in streams), P()), current()
    mapped = jax.shard_map(
        f, mesh=mesh, in_specs=specs, out_specs=P(None, AXIS), axis_names={AXIS}, check_vma=False
    )
    return mapped(*streams, whole)


def cuts(x: jax.Array) -> bool:
    """Does the current mesh cut x (B, T, …) along T, evenly?"""
    return cuts_sequence() and x.shape[1] % current().shape[AXIS] == 0


def require_divisible(length: int) -> None:
    """Raises BadInput where a sequence does not divide over the devices of the current mesh."""
    mesh = current()
    if mesh is not None and length % mesh.shape[AXIS]:
        raise BadInput(
            f"A sequence of {length} tokens does not divide over mesh.sequence={mesh.shape[AXIS]} devices: "
            f"choose a length that is a multiple, or another mesh."
        )


def gathered(tree: Any) -> Any:
    """Streams (B, T, …) with all of T on every device of the sequence axis; still whole arrays."""

    def place(x):
        spec = P(P.UNCONSTRAINED, None, *[P.UNCONSTRAINED] * (x.ndim - 2))
        return lax.with_sharding_constraint(x, NamedSharding(mesh, spec)) if x.ndim > 1 else x

    mesh = current()
    assert mesh is not None
    return jax.tree.map(place, tree)


def whole_rows(f: Callable, *trees: Any, whole: Any) -> jax.Array:
    """f(whole, *trees) of whole rows (B, T, …), as one device would compute them: every device has all of its
    part of the batch, heads included, and of `whole`, and keeps of the result (B, T, …) its own shard."""
    leaves = jax.tree.leaves(trees)
    shards = Shards.of(len(leaves[0]))
    where = jax.tree.map(lambda x: P(shards.batch), trees)

    def own(*inputs):
        o = f(*inputs)
        length = o.shape[1] // shards.count
        return lax.dynamic_slice_in_dim(o, rank() * length, length, axis=1)

    inputs = (whole, jax.tree.map(lambda x: P(), whole)), *zip(trees, where, strict=True)
    return shards.run(own, *inputs, out=P(shards.batch, AXIS))


# Inside of `Shards.run`:


def rank() -> jax.Array:
    """Which of the shards this is, counted in time."""
    return lax.axis_index(AXIS)


def shift(tree: Any, by: int = 1) -> Any:
    """What the shard `by` before has (after, where negative); zeros where there is none."""
    count = lax.axis_size(AXIS)
    pairs = [(i, i + by) for i in range(count) if 0 <= i + by < count]
    return jax.tree.map(lambda x: lax.ppermute(x, AXIS, pairs), tree)


def rotate(tree: Any) -> Any:
    """What the shard before has, that before the first being the last."""
    count = lax.axis_size(AXIS)
    pairs = [(i, (i + 1) % count) for i in range(count)]
    return jax.tree.map(lambda x: lax.ppermute(x, AXIS, pairs), tree)


def halo(tree: Any, before: int, after: int = 0) -> Any:
    """Streams (T,) or (B, T, …) with the `before` tokens that precede them and the `after` that follow; zeros
    beyond the ends of the sequence. Of a far halo the nearest neighbours send all that they have."""

    def widened(x):
        axis = min(x.ndim - 1, 1)
        length = x.shape[axis]
        parts = [x]
        for hop in range(1, -(-before // length) + 1):
            wanted = min(length, before - (hop - 1) * length)
            parts.insert(0, shift(lax.slice_in_dim(x, length - wanted, length, axis=axis), hop))
        for hop in range(1, -(-after // length) + 1):
            wanted = min(length, after - (hop - 1) * length)
            parts.append(shift(lax.slice_in_dim(x, 0, wanted, axis=axis), -hop))
        return jnp.concatenate(parts, axis)

    return jax.tree.map(widened, tree)


def composed_before(compose: Callable, own: Any, nothing: Any, *, reverse: bool = False) -> Any:
    """What all earlier shards' `own` compose to, in order: an exclusive scan in ⌈log₂(n − 1)⌉ + 1 rounds.

    Args:
      compose: (earlier, later) → both, associative.
      nothing: what it leaves as it is; the result of the first shard.
      reverse: time runs from the last shard to the first.
    """
    count = lax.axis_size(AXIS)
    place = count - 1 - rank() if reverse else rank()

    def earlier(x, by):
        come = shift(x, -by if reverse else by)
        return jax.tree.map(lambda x, none: jnp.where(place >= by, x, none), come, nothing)

    x, by = earlier(own, 1), 1
    while by < count - 1:
        x, by = compose(earlier(x, by), x), 2 * by
    return x
