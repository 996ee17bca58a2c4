"""Multi-query associative recall: pairs of keys and values are shown, then every key is asked for once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np

from transformer_jax.data.draws import Draws
from transformer_jax.data.task import Batch, Generated
from transformer_jax.errors import BadInput


@dataclass(frozen=True, kw_only=True)
class AssociativeRecall(Generated):
    """MQAR (Zoology, arXiv 2312.04927, Figure 2 and Appendix E).

    The first 2·pairs tokens are key, value, key, value, …: distinct keys from 1 .. vocabulary/2 − 1, distinct
    values from vocabulary/2 .. vocabulary − 1. The rest is (length − 2·pairs)/2 slots of two tokens; in the
    first token of a slot a key may be asked. The slots of the keys are drawn without replacement with
    probability ∝ a·i^(a−1), i the slot's number from 1: early slots are likelier. The label, the key's value,
    stands at the position of the question; no other position carries loss. The answer itself never appears in
    the input.

    filler: what stands at the positions that are neither pair nor question: "zeros" (Figure 2), or "random"
    tokens of the whole vocabulary, keys and values included (the setting of arXiv 2402.18668).
    The paper trains on 100,000 fixed examples: train_examples=100_000; None draws fresh ones for ever.
    """

    name: ClassVar[str] = "associative_recall"

    length: int = 64
    pairs: int = 4
    vocabulary: int = 8192  # type: ignore[assignment]
    power: float = 0.01
    filler: Literal["zeros", "random"] = "zeros"
    validation_examples: int = 3000
    test_examples: int = 3000

    def check(self) -> None:
        self.whole("pairs")
        self.whole("vocabulary")
        self.one_of("filler", ("zeros", "random"))
        if not isinstance(self.power, int | float) or not 0 < self.power < float("inf"):
            raise BadInput(f"associative_recall: power is {self.power!r}; it must be a positive number.")
        if self.length % 2:
            raise BadInput(
                f"associative_recall: length {self.length} is odd; slots are two tokens, so use an even one."
            )
        if 4 * self.pairs > self.length:
            raise BadInput(
                f"associative_recall: {self.pairs} pairs and their questions need a length of at least "
                f"{4 * self.pairs}, not {self.length}; raise length or lower pairs."
            )
        if self.vocabulary // 2 - 1 < self.pairs:
            raise BadInput(
                f"associative_recall: a vocabulary of {self.vocabulary} is too small for {self.pairs} "
                f"pairs of distinct keys and values; it must be at least {2 * self.pairs + 2}."
            )

    def examples(self, seed: int, indices: np.ndarray, step: int = 0) -> Batch:
        draw, context, half = Draws(seed, indices), 2 * self.pairs, self.vocabulary // 2
        keys = 1 + draw.distinct(half - 1, self.pairs)
        values = half + draw.distinct(self.vocabulary - half, self.pairs)
        slots = np.arange(1, (self.length - context) // 2 + 1)
        asked = context + 2 * draw.weighted(slots ** (self.power - 1.0), self.pairs)

        shape = (len(keys), self.length)
        if self.filler == "random":
            inputs = draw.below(self.vocabulary, self.length).astype(np.int32)
        else:
            inputs = np.zeros(shape, np.int32)
        inputs[:, 0:context:2] = keys
        inputs[:, 1:context:2] = values
        np.put_along_axis(inputs, asked, keys.astype(np.int32), axis=1)
        targets, weights = np.zeros(shape, np.int32), np.zeros(shape, np.float32)
        np.put_along_axis(targets, asked, values.astype(np.int32), axis=1)
        np.put_along_axis(weights, asked, np.float32(1), axis=1)
        return {"inputs": inputs, "targets": targets, "weights": weights}

    def guesses(self) -> dict[str, float]:
        """chance: any value; in context: one of those shown; not yet asked: one not asked for so far.

        The last knows that every key is asked once: with j keys left it is right with probability 1/j.
        """
        left = np.arange(1, self.pairs + 1)
        return {
            "chance": 1 / (self.vocabulary - self.vocabulary // 2),
            "in context": 1 / self.pairs,
            "not yet asked": float(np.mean(1 / left)),
        }
