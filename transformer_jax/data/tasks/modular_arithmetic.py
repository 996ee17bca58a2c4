"""Modular arithmetic: the value of an expression, with or without brackets."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np

from transformer_jax.data.draws import Draws, to_below
from transformer_jax.data.tasks.formal import Formal
from transformer_jax.errors import BadInput

OPERATORS = "+-*"  # of two symbols; ids: digits, then these, then the brackets


@dataclass(frozen=True, kw_only=True)
class ModularArithmetic(Formal):
    """1 + 2 * 3 - 4 modulo 5, products first (arXiv 2207.02098, "Modular Arithmetic (Simple)"; regular).

    Digits are uniform over 0 … modulus − 1 and alternate with operators, uniform over `operators`.
    """

    name: ClassVar[str] = "modular_arithmetic"
    odd: ClassVar[bool] = True

    modulus: int = 5
    operators: Literal["+-*", "+-", "+"] = "+-*"

    def check(self) -> None:
        super().check()
        self.whole("modulus", at_least=2)
        self.one_of("operators", ("+-*", "+-", "+"))

    @property
    def symbols(self) -> int:
        return self.modulus + len(OPERATORS)

    @property
    def outputs(self) -> int:
        return self.modulus

    def encode(self, text: str) -> np.ndarray:
        """Of an expression as it is written, such as "1+2*3"; modulo at most 10."""
        ids = {str(digit): digit for digit in range(min(self.modulus, 10))}
        ids |= {
            sign: self.modulus + i
            for i, sign in enumerate(OPERATORS + "()")
            if i < self.symbols - self.modulus
        }
        for sign in text.replace(" ", ""):
            if sign not in ids:
                raise BadInput(f"{self.name} reads expressions of {' '.join(ids)}, not {sign!r}.")
        return np.array([ids[sign] for sign in text.replace(" ", "")], np.int64)

    def decode(self, tokens: np.ndarray) -> str:
        signs = [*map(str, range(self.modulus)), *OPERATORS, "(", ")"][: self.symbols]
        return "".join([*signs, ""][token] for token in tokens)

    def strings(self, seed: int, indices: np.ndarray, lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        draw = Draws(seed, indices)
        symbols = draw.below(self.modulus, self.length)
        symbols[:, 1::2] = self.modulus + draw.below(len(self.operators), self.length // 2)
        # The value so far is done + sum_of_term: a product extends the open term, + and − close it.
        done, term = np.zeros(len(symbols), np.int64), symbols[:, 0]
        values = np.zeros_like(symbols)
        values[:, 0] = term
        for place in range(2, self.length, 2):
            sign, digit = symbols[:, place - 1] - self.modulus, symbols[:, place]
            done = np.where(sign == 2, done, done + term) % self.modulus
            term = np.where(sign == 2, term * digit, np.where(sign == 1, -digit, digit)) % self.modulus
            values[:, place] = (done + term) % self.modulus
        return symbols, np.take_along_axis(values, lengths[:, None] - 1, axis=1)[:, 0]


@dataclass(frozen=True, kw_only=True)
class BracketedArithmetic(ModularArithmetic):
    """(1 - (-3)) * … modulo 5 (arXiv 2207.02098, "Modular Arithmetic"; deterministic context-free).

    Its generator's grammar: a string of 1, 2, 3 or 4 symbols is d, −d, (d), (−d); a longer one is
    (left operator right), the length of its left part uniform over all that leave the right one a symbol.
    """

    name: ClassVar[str] = "modular_arithmetic_brackets"
    odd: ClassVar[bool] = False

    @property
    def symbols(self) -> int:
        return self.modulus + len(OPERATORS) + 2

    def strings(self, seed: int, indices: np.ndarray, lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        draw = Draws(seed, indices)
        # Every part of a string begins at a place of its own, which names its draws.
        split, sign = draw.bits(self.length), draw.below(len(self.operators), self.length)
        digit = draw.below(self.modulus, self.length)
        plus, minus, opening, closing = (self.modulus + np.array([0, 1, 3, 4])).tolist()
        symbols = np.zeros((len(lengths), self.length), np.int64)
        levels = []
        row, start, size = np.arange(len(lengths)), np.zeros(len(lengths), np.int64), lengths
        while len(row):  # the parts of one depth of all strings at once
            leaf, wide = size < 5, size >= 3
            symbols[row[wide], start[wide]] = opening
            symbols[row[wide], (start + size - 1)[wide]] = closing
            negative = leaf & (size % 2 == 0)
            symbols[row[negative], (start + wide)[negative]] = minus
            place = start + wide + negative
            symbols[row[leaf], place[leaf]] = digit[row, start][leaf]
            value = np.where(negative, -digit[row, start], digit[row, start])
            row, start, size = row[~leaf], start[~leaf], size[~leaf]
            left = 1 + to_below(split[row, start], size - 4)
            symbols[row, start + 1 + left] = plus + sign[row, start]
            levels.append((leaf, value, sign[row, start]))
            row, start = np.tile(row, 2), np.concatenate([start + 1, start + 2 + left])
            size = np.concatenate([left, size - left - 3])
        below = np.zeros(0, np.int64)
        for leaf, value, operator in reversed(levels):
            one, other = np.split(below, 2)
            value[~leaf] = np.choose(operator, [one + other, one - other, one * other])
            below = value % self.modulus
        return symbols, below
