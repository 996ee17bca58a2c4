"""Which keys each block of queries looks at: the static side of softmax over a pattern.

A plan cuts T queries into rows of `block` tokens and puts rows with equally many keys into a group.
A group's keys are either a contiguous span of tokens per row, which is read as a slice, or a list of
key blocks per row, static or traced (chosen by content), which is gathered. What lies in no row's
span or list is never computed; what lies there but must not be seen is masked by the score.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import jax
import numpy as np

BLOCK = 128
"""Queries per row. On CPUs the matrix products of 128 rows run at full speed and the scores stay in cache."""

MAX_GROUPS = 8
"""Groups of different key counts, each compiled apart. With 8, long causal plans do 1/9 more than needed."""


@dataclass(frozen=True, kw_only=True)
class Span:
    """Rows that see `length` successive tokens, from `starts[r]` on for row `rows[r]`."""

    rows: np.ndarray
    starts: np.ndarray
    length: int


@dataclass(frozen=True, kw_only=True)
class Blocks:
    """Rows that see listed blocks of `block` keys.

    Attributes:
      rows: (R,) the rows of queries.
      lists: (R, C), the same for every sequence and head, or (B, K, R, C); int32, −1 where absent.
        No block may stand twice in a list.
      block: keys per block; the last block of a sequence may be short.
    """

    rows: np.ndarray
    lists: jax.Array | np.ndarray
    block: int

    @property
    def length(self) -> int:
        return self.lists.shape[-1] * self.block


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Groups of rows of `block` queries, each row in at most one group; without one it sees nothing.

    All `Blocks` have the same block of keys.

    Attributes:
      reach: (before, after) where query i may see the keys from i − before to i + after (None: without
        bound) and the score hides those that it must not: then keys may come in any parts, as from other
        devices. None where a query sees what its list has.
      place: the key at whose place the first query stands.
    """

    queries: int
    keys: int
    block: int
    groups: Sequence[Span | Blocks]
    reach: tuple[int | None, int | None] | None = None
    place: int = 0

    @property
    def rows(self) -> int:
        return -(-self.queries // self.block)

    @property
    def missing_keys(self) -> int:
        """Keys to add so that listed blocks are whole."""
        return -self.keys % max((g.block for g in self.groups if isinstance(g, Blocks)), default=1)

    @property
    def pairs(self) -> int:
        """Query-key pairs that are computed, masked ones included: each costs two products of a head."""
        return sum(len(g.rows) * self.block * g.length for g in self.groups)

    @property
    def static(self) -> bool:
        """Whether its lists are numbers, and not chosen by content."""
        return all(
            isinstance(g, Span) or isinstance(g.lists, np.ndarray) and g.lists.ndim == 2 for g in self.groups
        )

    def listed(self, row: int) -> np.ndarray:
        """(S,) bool: the keys that are computed for a row of a static plan."""
        keys = np.zeros(self.keys, bool)
        for group in self.groups:
            for at in np.flatnonzero(group.rows == row):
                if isinstance(group, Span):
                    keys[group.starts[at] : group.starts[at] + group.length] = True
                    continue
                for block in group.lists[at]:
                    if block >= 0:
                        keys[block * group.block : (block + 1) * group.block] = True
        return keys


def row_size(queries: int, block: int = BLOCK) -> int:
    """The row size nearest below `block` that cuts `queries` evenly, so that little is padded."""
    return -(-queries // max(1, -(-queries // block)))


def band(
    queries: int,
    keys: int,
    *,
    before: int | None = None,
    after: int | None = None,
    block: int = BLOCK,
    place: int = 0,
) -> Plan:
    """The plan of queries i that see keys i − before … i + after; None is without bound. The first query
    stands at the `place` of that key."""
    block = row_size(queries, block)
    first = np.arange(0, queries, block)
    last = np.minimum(first + block, queries) - 1
    start = np.zeros_like(first) if before is None else np.clip(first + place - before, 0, keys)
    stop = np.full_like(first, keys) if after is None else np.clip(last + place + after + 1, 0, keys)
    start = start // block * block  # aligned slices; a whole number of blocks makes equal spans
    stop = np.minimum(-(-stop // block) * block, keys)
    groups = spans(start, stop, keys, block)
    return Plan(queries=queries, keys=keys, block=block, groups=groups, reach=(before, after), place=place)


def own_blocks(queries: int, keys: int, block: int) -> Plan:
    """The plan of queries that see the block of keys at their own place."""
    rows = np.arange(-(-queries // block))
    group = Blocks(rows=rows, lists=rows[:, None], block=block)
    return Plan(queries=queries, keys=keys, block=block, groups=[group])


def spans(start: np.ndarray, stop: np.ndarray, keys: int, block: int) -> list[Span]:
    """Groups rows by their number of keys, widening spans until there are at most MAX_GROUPS of them."""
    length = np.maximum(stop - start, 1)
    unit = block
    while len(np.unique(length)) > MAX_GROUPS:
        length = np.minimum(-(-(stop - start) // unit) * unit, keys)
        unit += block
    groups = []
    for size in np.unique(length):
        rows = np.flatnonzero(length == size)
        starts = np.minimum(start[rows], keys - size)
        groups.append(Span(rows=rows, starts=starts, length=int(size)))
    return groups


def listed(lists: Sequence[Sequence[int]], block: int) -> list[Blocks]:
    """Groups rows, each with its list of key blocks, by their number of those; lists are filled up, with
    nothing, until there are at most MAX_GROUPS."""
    count = np.array([len(keys) for keys in lists])
    length, unit = count, 1
    while len(np.unique(length)) > MAX_GROUPS:
        unit += 1
        length = -(-count // unit) * unit
    groups = []
    for size in np.unique(length):
        rows = np.flatnonzero(length == size)
        filled = [[*lists[row], *[-1] * (size - count[row])] for row in rows.tolist()]
        groups.append(Blocks(rows=rows, lists=np.array(filled, np.int32), block=block))
    return groups
