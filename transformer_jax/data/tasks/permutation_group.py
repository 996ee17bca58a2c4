"""The word problem of a finite group: the product of all elements so far."""

from __future__ import annotations

import dataclasses
import functools
import itertools
from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

import numpy as np

from transformer_jax.data.draws import Draws
from transformer_jax.data.task import Batch, Generated, Task

Group = Literal["S5", "A5", "A4xZ5", "Z60"]


@dataclass(frozen=True, kw_only=True)
class PermutationGroup(Generated):
    """Word problems of groups (Merrill et al., arXiv 2404.08819), a measure of state tracking.

    Elements g₁ … g_T are uniform; at each the product g₁ ⋯ g_t is asked for.
    group: S5, all 120 permutations of five, and A5, the 60 even ones, are not solvable (their word problem is
      complete for NC¹); A4xZ5 is solvable; Z60 is addition modulo 60. The last three have 60 elements each.
      Elements are numbered by the permutations in lexicographic order; a product applies its left factor
      first.
    test_up_to: the evaluations double the length up to this one; 0 has none.
    """

    name: ClassVar[str] = "permutation_group"

    length: int = 16
    group: Group = "A5"
    test_up_to: int = 128

    def check(self) -> None:
        self.one_of("group", get_args(Group))
        self.whole("test_up_to", at_least=0)

    @property
    def vocabulary(self) -> int:
        return len(products(self.group))

    def examples(self, seed: int, indices: np.ndarray, step: int = 0) -> Batch:
        table = products(self.group)
        inputs = Draws(seed, indices).below(len(table), self.length).astype(np.int32)
        targets = inputs.copy()
        for t in range(1, self.length):
            targets[:, t] = table[targets[:, t - 1], inputs[:, t]]
        return {"inputs": inputs, "targets": targets, "weights": np.ones(inputs.shape, np.float32)}

    def evaluations(self) -> dict[str, Task]:
        lengths = itertools.takewhile(
            lambda length: length <= self.test_up_to, (self.length * 2**power for power in itertools.count(1))
        )
        return {str(length): dataclasses.replace(self, length=length, test_up_to=0) for length in lengths}

    def guesses(self) -> dict[str, float]:
        return {"chance": 1 / self.vocabulary}


@functools.cache
def products(group: Group) -> np.ndarray:
    """(order, order) int32: the number of the product of two elements."""
    if group == "Z60":
        return np.add.outer(np.arange(60), np.arange(60)).astype(np.int32) % 60
    if group == "A4xZ5":
        four, five = _of_permutations(4, even=True), np.add.outer(np.arange(5), np.arange(5)) % 5
        return (5 * four[:, None, :, None] + five[None, :, None, :]).reshape(60, 60)
    return _of_permutations(5, even=group == "A5")


def _of_permutations(points: int, *, even: bool) -> np.ndarray:
    elements = [p for p in itertools.permutations(range(points)) if not even or _sign(p) == 1]
    number = {element: i for i, element in enumerate(elements)}
    return np.array(
        [[number[tuple(second[i] for i in first)] for second in elements] for first in elements], np.int32
    )


def _sign(permutation: tuple[int, ...]) -> int:
    return round(np.linalg.det(np.eye(len(permutation))[list(permutation)]))
