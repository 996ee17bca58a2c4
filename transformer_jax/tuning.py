"""What makes a comparison fair: a budget of tuning equal for all, and models of equal size on request."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from transformer_jax import overrides
from transformer_jax.errors import BadInput


@dataclass(frozen=True, kw_only=True)
class Grid:
    """The tuning budget, equal for every variant.

    Attributes:
      learning_rate: the rates tried; empty for the one of `train`.
      weight_decay: the weight decays tried with each of them; empty for the one of `train`. The report takes
        the best pair of the two.
      width: the widths of the model at which each variant is trained, a line of the table each; empty for
        the one of `model`.
      seeds: runs of each of these, with the seeds 0, 1, ...
    """

    learning_rate: tuple[float, ...] = ()
    weight_decay: tuple[float, ...] = ()
    width: tuple[int, ...] = ()
    seeds: int = 3

    def __post_init__(self):
        overrides.check_fields(self, "tune")
        if self.seeds < 1:
            raise BadInput(f"tune.seeds={self.seeds} must be at least 1.")
        for name, fits, says in (
            ("learning_rate", lambda rate: rate > 0, "above 0"),
            ("weight_decay", lambda decay: decay >= 0, "of at least 0"),
            ("width", lambda width: width >= 1, "of at least 1"),
        ):
            values = getattr(self, name)
            if len(set(values)) < len(values) or not all(map(fits, values)):
                raise BadInput(f"tune.{name}={values} must be different numbers {says}.")


@dataclass(frozen=True, kw_only=True)
class Match:
    """In what the variants are made equal, by their widths (`transformer_jax.sweep.widths`).

    Attributes:
      what: parameters; state (the bytes of a decoding state at the task's full length); flops (the matrix
        products of training on one token, at the task's length); or none of them.
      within: how far from the first variant's, as a fraction of it, another may stay.
      most_parameters: of equal state or FLOPs, how many times the parameters of the first variant another may
        have: a state of fixed size equals a cache of keys and values only in a model that is far larger.
    """

    what: Literal["parameters", "state", "flops"] | None = None
    within: float = 0.1
    most_parameters: float = 16.0

    def __post_init__(self):
        overrides.check_fields(self, "match")
        if not self.within > 0:
            raise BadInput(f"match.within={self.within} must be above 0.")
        if not self.most_parameters >= 1:
            raise BadInput(f"match.most_parameters={self.most_parameters} must be at least 1.")
