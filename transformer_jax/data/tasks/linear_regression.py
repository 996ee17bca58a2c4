"""In-context linear regression: from pairs (x, w·x) to the value at the next x."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np

from transformer_jax.data.draws import Draws
from transformer_jax.data.task import Batch, Generated, Metric, Task
from transformer_jax.errors import BadInput


@dataclass(frozen=True, kw_only=True)
class LinearRegression(Generated):
    """Learning linear functions in context (Garg et al., arXiv 2208.01066).

    A row is x₁, y₁, x₂, y₂, …: x and w are standard normal in `dims` dimensions, y = w·x stands in the first
    entry of a vector, zeros after it. At each x its y is asked for, from the pairs before. The paper divides
    the squared error by `dims`, which is what saying nothing costs; here it is plain.

    The curriculum: training begins with the first start_dims entries of x and start_points points, and every
    grow_every steps there is one entry and two points more. Splits are of full size.

    asked: score the one x that has so many pairs before it; None: all. The evaluations are "0", "10", "20", …
      pairs, and as many as there are.
    """

    name: ClassVar[str] = "linear_regression"
    metric: ClassVar[Metric] = "squared_error"

    length: int = 82
    dims: int = 20
    start_dims: int = 5
    start_points: int = 11
    grow_every: int = 2000
    asked: int | None = None

    def check(self) -> None:
        for field in ("dims", "start_dims", "start_points", "grow_every"):
            self.whole(field)
        if self.length % 2:
            raise BadInput(f"linear_regression: length {self.length} is odd; a point takes two places.")
        if self.asked is not None and not 0 <= self.asked < self.points:
            raise BadInput(
                f"linear_regression: asked is {self.asked}; before one of {self.points} points lie 0 to "
                f"{self.points - 1} pairs."
            )

    @property
    def points(self) -> int:
        """Pairs in a row."""
        return self.length // 2

    @property
    def vocabulary(self) -> int:
        return 0

    @property
    def outputs(self) -> int:
        return 1

    @property
    def features(self) -> int:
        return self.dims

    def examples(self, seed: int, indices: np.ndarray, step: int = 0) -> Batch:
        draw, grown = Draws(seed, indices), step // self.grow_every
        x = draw.normal(self.points * self.dims).reshape(-1, self.points, self.dims)
        x[:, :, min(self.dims, self.start_dims + grown) :] = 0
        y = np.einsum("npd,nd->np", x, draw.normal(self.dims))
        points = min(self.points, self.start_points + 2 * grown)

        inputs = np.zeros((len(indices), self.length, self.dims), np.float32)
        inputs[:, : 2 * points : 2] = x[:, :points]
        inputs[:, 1 : 2 * points : 2, 0] = y[:, :points]
        targets, weights = np.zeros(inputs.shape[:2], np.float32), np.zeros(inputs.shape[:2], np.float32)
        targets[:, : 2 * points : 2] = y[:, :points]
        weights[:, slice(0, 2 * points, 2) if self.asked is None else 2 * self.asked] = 1
        return {"inputs": inputs, "targets": targets, "weights": weights}

    def evaluations(self) -> dict[str, Task]:
        if self.asked is not None:
            return {}
        counts = [*range(0, self.points - 1, 10), self.points - 1]
        return {str(count): dataclasses.replace(self, asked=count) for count in counts}

    def measure_baselines(self, directory: Path) -> dict[str, float]:
        """zero: y = 0. least squares: the w of least norm that fits the pairs so far, which is the posterior
        mean: no guesser is better on average.
        """
        from transformer_jax.data import builders

        batch = builders.read(self, "test", directory).all()
        x, y, weights = batch["inputs"][:, ::2], batch["targets"][:, ::2], batch["weights"][:, ::2]
        guess = np.zeros_like(y)
        for point in range(1, self.points):
            w = np.linalg.pinv(x[:, :point]) @ y[:, :point, None]
            guess[:, point] = (x[:, point] * w[..., 0]).sum(axis=1)
        mean = lambda values: float((values * weights).sum() / weights.sum())
        return {"zero": mean(y**2), "least squares": mean((guess - y) ** 2)}
