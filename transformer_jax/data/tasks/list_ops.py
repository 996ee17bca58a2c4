"""ListOps: the value of nested lists with the operators MIN, MAX, MED and SM."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np

from transformer_jax.data.draws import Draws, to_below
from transformer_jax.data.task import FIXED_SEEDS, Batch, Generated, Split
from transformer_jax.errors import BadInput

# Ids: the digits are their own; then:
OPERATORS = ("[MIN", "[MAX", "[MED", "[SM")
END, PADDING = 14, 15
SIGNS = [*map(str, range(10)), *OPERATORS, "]", ""]
ATTEMPTS = 32  # trees tried at once for each example

Level = tuple[np.ndarray, np.ndarray, np.ndarray]
"""The nodes of many trees at one depth, tree by tree and siblings side by side: which tree each belongs to,
its number of arguments (0: a digit), and its id."""


@dataclass(frozen=True, kw_only=True)
class ListOps(Generated):
    """ListOps (Nangia and Bowman, arXiv 1804.06028) as the Long Range Arena makes it (arXiv 2011.04006).

    From its generator: a node is an operator with probability 1/4 unless it lies at depth `depth` (the root
    lies at 1), with 2 … `arguments` arguments, uniform; else a digit, uniform. MED is the median cut to a
    whole number, SM the sum modulo 10. Trees are drawn anew until the expression, counted without the
    binary brackets that the tokenizer drops, has more than `shortest` and less than `length` tokens. That
    generator is unseeded; it drops duplicates, which at these lengths do not occur.
    """

    name: ClassVar[str] = "list_ops"
    target: ClassVar[Literal["token", "sequence"]] = "sequence"
    causal: ClassVar[bool] = False
    padded: ClassVar[bool] = True

    length: int = 2000
    shortest: int = 500
    depth: int = 10
    arguments: int = 10
    train_examples: int | None = 96_000
    validation_examples: int = 2000
    test_examples: int = 2000

    def check(self) -> None:
        self.whole("shortest", at_least=0)
        self.whole("depth", at_least=2)
        self.whole("arguments", at_least=2)
        if not self.shortest + 1 < self.length:
            raise BadInput(
                f"list_ops: no length lies between {self.shortest} and {self.length}, both left out; "
                "lower shortest or raise length."
            )
        levels = min(self.depth - 1, 64)
        most = sum(2 * self.arguments**level for level in range(levels)) + self.arguments**levels
        if most <= self.shortest:
            raise BadInput(
                f"list_ops: depth {self.depth} and {self.arguments} arguments allow at most {most} tokens, "
                f"and more than {self.shortest} are asked for; lower shortest or raise depth."
            )

    @property
    def vocabulary(self) -> int:
        return 16

    @property
    def outputs(self) -> int:
        return 10

    def examples(self, seed: int, indices: np.ndarray, step: int = 0) -> Batch:
        texts, labels = self.expressions(seed, indices)
        return self.collate({"text": np.array(texts, object), "label": labels})

    def rows(self, split: Split, directory: Path) -> Iterator[Mapping[str, Any]]:
        """Stored as bytes, one per token: padded rows would take eight times the room."""
        count = self.examples_in(split)
        for start in range(0, count, 256):
            indices = np.arange(start, min(start + 256, count))
            for text, label in zip(*self.expressions(FIXED_SEEDS[split], indices), strict=True):
                yield {"text": text, "label": int(label)}

    def collate(self, columns: Batch) -> Batch:
        lengths = np.array([len(text) for text in columns["text"]], np.int32)
        inputs = np.full((len(lengths), self.length), PADDING, np.int32)
        inputs[np.arange(self.length) < lengths[:, None]] = np.frombuffer(b"".join(columns["text"]), np.uint8)
        return {
            "inputs": inputs,
            "targets": columns["label"].astype(np.int32),
            "weights": np.ones(len(lengths), np.float32),
            "lengths": lengths,
        }

    def encode(self, text: str) -> np.ndarray:
        """Of an expression with spaces between its tokens, such as "[MAX 2 9 ]"."""
        unknown = set(text.split()) - set(SIGNS)
        if unknown:
            raise BadInput(f"list_ops reads digits, {', '.join(OPERATORS)} and ], not {min(unknown)!r}.")
        return np.array([SIGNS.index(sign) for sign in text.split()], np.int64)

    def decode(self, tokens: np.ndarray) -> str:
        return " ".join(SIGNS[token] for token in tokens if token != PADDING)

    def guesses(self) -> dict[str, float]:
        return {"chance": 0.1}

    def expressions(self, seed: int, indices: np.ndarray) -> tuple[list[bytes], np.ndarray]:
        """The tokens of each expression, one byte each, and the values (B,)."""
        texts, labels = [b""] * len(indices), np.zeros(len(indices), np.int32)
        open_, block = np.arange(len(indices)), 0
        while len(open_):
            # Row (example, attempt) of a block draws from its own stream: attempt by attempt, as one alone.
            attempts = np.tile(np.arange(ATTEMPTS), len(open_))
            draw = Draws(seed, np.repeat(indices[open_], ATTEMPTS) * ATTEMPTS + attempts, stream=block + 1)
            levels, sizes = self._grow(draw)
            good = ((sizes > self.shortest) & (sizes < self.length)).reshape(len(open_), ATTEMPTS)
            first, found = good.argmax(axis=1), good.any(axis=1)
            chosen = np.flatnonzero(found) * ATTEMPTS + first[found]
            if len(chosen):
                for example, (text, label) in zip(open_[found], _write(levels, chosen), strict=True):
                    texts[example], labels[example] = text, label
            open_, block = open_[~found], block + 1
        return texts, labels

    def _grow(self, draw: Draws) -> tuple[list[Level], np.ndarray]:
        """A tree for each row of draws, and the length of its expression.

        A tree that has become too long grows no more; its length then says only that.
        """
        trees = len(draw)
        tree, sizes, levels = np.arange(trees), np.zeros(trees, np.int64), []
        for level in range(1, self.depth + 1):
            order = np.arange(len(tree)) - np.searchsorted(tree, tree)
            # One word per node: 2 bits say whether it is an operator (all zero: 1/4), the next ones how many
            # arguments it has, the last 30 which operator or digit it is.
            word = draw.bits_at(tree, order)
            split = (word >> np.uint64(62) == 0) & (sizes[tree] < self.length) & (level < self.depth)
            count = np.where(split, 2 + to_below(word << np.uint64(2), self.arguments - 1), 0)
            kind = np.where(
                split, 10 + to_below(word << np.uint64(34), 4), to_below(word << np.uint64(34), 10)
            )
            levels.append((tree, count, kind))
            sizes += np.bincount(tree, 1 + (count > 0), trees).astype(np.int64)
            tree = np.repeat(tree, count)
            if not len(tree):
                break
        return levels, sizes


def _write(levels: list[Level], chosen: np.ndarray) -> Iterator[tuple[bytes, int]]:
    """The tokens and the value of the trees `chosen`, which rise."""
    kept = [[part[np.isin(level[0], chosen)] for part in level[1:]] for level in levels]
    nodes = [(count, kind) for count, kind in kept if len(count)]
    # From the leaves up: the value and the length of each node's expression.
    values, sizes = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
    for count, kind in reversed(nodes):
        value, size, inner = kind.copy(), np.ones_like(kind), count > 0
        if inner.any():
            begin = np.cumsum(count[inner]) - count[inner]
            value[inner] = _reduced(kind[inner] - 10, values[-1], begin, count[inner])
            size[inner] = 2 + np.add.reduceat(sizes[-1], begin)
        values.append(value)
        sizes.append(size)
    sizes = sizes[:0:-1]
    # From the roots down: where each expression begins in the text of all, one after another.
    text = np.empty(sizes[0].sum(), np.uint8)
    start = np.cumsum(sizes[0]) - sizes[0]
    for level, (count, kind) in enumerate(nodes):
        inner = count > 0
        text[start] = kind
        text[(start + sizes[level])[inner] - 1] = END
        if inner.any():
            before = np.cumsum(sizes[level + 1]) - sizes[level + 1]
            begin = np.cumsum(count[inner]) - count[inner]
            start = np.repeat(start[inner] + 1 - before[begin], count[inner]) + before
    ends, whole = np.cumsum(sizes[0]), text.tobytes()
    for end, length, label in zip(ends.tolist(), sizes[0].tolist(), values[-1].tolist(), strict=True):
        yield whole[end - length : end], label


def _reduced(operator: np.ndarray, values: np.ndarray, begin: np.ndarray, count: np.ndarray) -> np.ndarray:
    """Each operator on its run of `values`, `count` from `begin` on."""
    run = np.repeat(np.arange(len(begin)), count)
    ordered = values[np.lexsort((values, run))]
    median = (ordered[begin + (count - 1) // 2] + ordered[begin + count // 2]) // 2
    return np.choose(
        operator,
        [ordered[begin], ordered[begin + count - 1], median, np.add.reduceat(values, begin) % 10],
    )
