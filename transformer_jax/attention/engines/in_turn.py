"""A function of many sequences and heads, computed for some of them after others, to hold less at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from transformer_jax.parallel.mesh import platform

ALONE = -1
"""The axis of what is not cut: an input that every part reads, or an output to which every part adds."""


class Cut(NamedTuple):
    """`whole` things (sequences, heads) in `parts` equal parts.

    Attributes:
      axes: where each leaf of the function's arguments has them, or ALONE: a tree like the tuple of them.
        An axis may have a multiple of `whole`: then as many successive elements belong to one thing.
      out_axes: the same of what the function returns.
    """

    whole: int
    parts: int
    axes: Any
    out_axes: Any


def sequential_parts(count: int, tile: int, devices: int = 1) -> int:
    """Into how many equal parts `count` tiles of scores are cut, to compute one part after the other.

    Scores that fit the cache of a CPU are worth more than many at once; elsewhere only memory counts.
    Where the tiles are spread over `devices`, each part has as many of every device: a part of fewer tiles
    than devices would have to be gathered, and computed by all of them.
    """
    if count % devices == 0:
        count //= devices
    room = 2**18 if platform() == "cpu" else 2**27
    together = max((n for n in range(1, count + 1) if count % n == 0 and n * tile <= room), default=1)
    return count // together


def in_turn(f: Callable, cuts: Sequence[Cut], out: Any) -> Callable:
    """f of one part after the other; `out` has the shapes and dtypes of what it returns of the whole.

    A part is read where it lies, and written where it belongs: what goes through a loop as an array of
    parts is copied first.
    """
    total = int(np.prod([cut.parts for cut in cuts]))
    if total == 1:
        return f
    axes = list(zip(*(jax.tree.leaves(cut.axes) for cut in cuts), strict=True))
    out_axes = list(zip(*(jax.tree.leaves(cut.out_axes) for cut in cuts), strict=True))

    def whole(*inputs):
        leaves, tree = jax.tree.flatten(inputs)

        def step(done, part):
            mine = [take(x, window(x.shape, cuts, at, part)) for x, at in zip(leaves, axes, strict=True)]
            new = jax.tree.leaves(f(*jax.tree.unflatten(tree, mine)))
            each = zip(done, new, out_axes, strict=True)
            return [put(x, y, window(x.shape, cuts, at, part), add=ALONE in at) for x, y, at in each], None

        done = [jnp.zeros(x.shape, x.dtype) for x in jax.tree.leaves(out)]
        done, _ = lax.scan(step, done, jnp.arange(total, dtype=jnp.int32))
        return jax.tree.unflatten(jax.tree.structure(out), done)

    return whole


class Window(NamedTuple):
    """Where a part lies: in the array seen as `shape` from `start` on, `size`; as an array it is `part`."""

    shape: Sequence[int]
    start: Sequence[Any]
    size: Sequence[int]
    part: Sequence[int]


def window(shape: Sequence[int], cuts: Sequence[Cut], axes: Sequence[int], part: jax.Array) -> Window:
    # Part p has the things p, p + parts, …: on a mesh that shards the axis, a part is spread over it.
    view, size, mine = [[n] for n in shape], [[n] for n in shape], list(shape)
    start: list[list[Any]] = [[0] for _ in shape]
    for cut, axis in zip(cuts, axes, strict=True):
        part, p = part // cut.parts, part % cut.parts
        if axis != ALONE:
            things, each = cut.whole // cut.parts, shape[axis] // cut.whole
            view[axis], start[axis] = [things, cut.parts, each], [0, p, 0]
            size[axis], mine[axis] = [things, 1, each], things * each
    return Window(sum(view, []), [jnp.int32(n) for n in sum(start, [])], sum(size, []), mine)


def take(x: jax.Array, at: Window) -> jax.Array:
    return lax.dynamic_slice(x.reshape(at.shape), at.start, at.size).reshape(at.part)


def put(x: jax.Array, new: jax.Array, at: Window, *, add: bool) -> jax.Array:
    view, new = x.reshape(at.shape), new.reshape(at.size)
    new = lax.dynamic_slice(view, at.start, at.size) + new if add else new
    return lax.dynamic_update_slice(view, new.astype(x.dtype), at.start).reshape(x.shape)
