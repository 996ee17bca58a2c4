"""How near attention by random features comes to softmax attention, and how that depends on the features."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import jax
import jax.numpy as jnp
from flax import nnx

from transformer_jax.attention import catalogue
from transformer_jax.attention.contract import Geometry, Layout
from transformer_jax.attention.core import CoreMixer
from transformer_jax.errors import BadInput
from transformer_jax.measure.bench import Bench

Row = dict[str, Any]
ESTIMATORS = {
    "positive, orthogonal": ("performer", "orthogonal"),
    "positive, independent": ("performer", "independent"),
    "trigonometric, orthogonal": ("performer_trigonometric", "orthogonal"),
    "trigonometric, independent": ("performer_trigonometric", "independent"),
}
ROWS = 64
"""Queries whose attention is compared entry by entry: 64 of length 4,096 are 262,144 entries."""


@dataclass(frozen=True, kw_only=True)
class Approximation:
    """The error of FAVOR+ (arXiv:2009.14794, Figure 4) against bidirectional softmax attention.

    Queries, keys and values are normal and drawn anew for each draw, as the features are; the four estimators
    of a draw see the same input.

    Attributes:
      length: T. head_size: H.
      features: m, how many ω are drawn. A trigonometric estimate has a sine and a cosine of each.
      draws: of input and features.
      spread: standard deviation of the entries of queries and keys; those of the values have 1.
      lengths: at which the time of a core is measured beside full attention; empty for none.
    """

    length: int = 4096
    head_size: int = 16
    features: tuple[int, ...] = (16, 32, 64, 128, 256)
    draws: int = 15
    spread: float = 1.0
    lengths: tuple[int, ...] = ()

    def __post_init__(self):
        if min((self.length, self.head_size, self.draws, *self.features)) < 1 or not self.features:
            raise BadInput("measure: length, head_size, draws and each of features must be at least 1.")
        if not self.spread > 0:
            raise BadInput(f"measure.spread={self.spread} must be above 0.")

    def parts(self) -> dict[str, Callable[[Callable[[str], None]], list[Row]]]:
        """What can be measured apart: each number of features, and the time at each length."""
        errors: dict[str, Callable[[Callable[[str], None]], list[Row]]] = {
            f"m = {features}": partial(self.errors, features) for features in self.features
        }
        if not self.lengths:
            return errors
        return (
            errors
            | Bench(variants=("full", "performer"), lengths=self.lengths, direction="bidirectional").parts()
        )

    def errors(self, features: int, progress: Callable[[str], None]) -> list[Row]:
        """A row for each draw and estimator: `mse` of the output, that over the output's mean square
        (`relative`), and the median of |Â − A| / A over the tenths of the entries A of attention that are
        smallest (`small_entries`) and largest (`large_entries`)."""
        progress(f"m = {features}: {self.draws} draws of {len(ESTIMATORS)} estimators")
        exact = self._programs("full", {})
        estimators = {
            name: self._programs(mechanism, {"features": features, "draws": kind})
            for name, (mechanism, kind) in ESTIMATORS.items()
        }
        rows = []
        for draw in range(self.draws):
            q, k, v = jax.random.normal(jax.random.key(draw), (3, 1, self.length, 1, self.head_size))
            qkv = self.spread * q, self.spread * k, v
            o, A = exact(*qkv, draw)
            order = jnp.argsort(A.reshape(-1))
            tenth = max(1, len(order) // 10)
            for name, estimate in estimators.items():
                o_hat, A_hat = estimate(*qkv, draw)
                mse = jnp.mean((o_hat - o) ** 2)
                off = (jnp.abs(A_hat - A) / A).reshape(-1)[order]
                rows.append(
                    {
                        "kind": "approximation",
                        "estimator": name,
                        "features": features,
                        "draw": draw,
                        "spread": self.spread,
                        "mse": float(mse),
                        "relative": float(mse / jnp.mean(o**2)),
                        "small_entries": float(jnp.median(off[:tenth])),
                        "large_entries": float(jnp.median(off[-tenth:])),
                    }
                )
        return rows

    def _programs(self, mechanism: str, options: dict[str, Any]) -> Callable:
        """(q, k, v, seed) → the output of the core, and the attention of the first queries."""
        geometry = Geometry(width=self.head_size, length=self.length, causal=False)
        layout = Layout.plain(1, self.length)

        def build(seed: int) -> CoreMixer:
            rngs = nnx.Rngs(jax.random.fold_in(jax.random.key(1), seed))
            return cast(CoreMixer, catalogue.build(mechanism, geometry, rngs=rngs, **options))

        graph, _ = nnx.split(build(0))

        @jax.jit
        def run(values, q, k, v):
            mixer = nnx.merge(graph, values)
            o, _ = mixer.core({"q": q, "k": k, "v": v}, layout, None)
            return o, mixer.definition(q[0, :ROWS, 0], k[0, :, 0], jnp.eye(self.length))

        return lambda q, k, v, seed: run(nnx.split(build(seed))[1], q, k, v)
