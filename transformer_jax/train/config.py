"""How a model is trained, said once: budget, optimizer, schedule, evaluation and checkpoints."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from transformer_jax.errors import BadInput
from transformer_jax.overrides import check_fields
from transformer_jax.parallel.mesh import Axes


@dataclass(frozen=True, kw_only=True)
class Train:
    """The training recipe.

    Attributes:
      steps: optimizer steps. batch: sequences per step, over all devices and microbatches.
      optimizer: adamw (arXiv:1711.05101), adam (arXiv:1412.6980), nadamw (adamw with Nesterov
        momentum), radam (arXiv:1908.03265), lion (arXiv:2302.06675), sgd with momentum b1.
      learning_rate: the peak. schedule: after the warm-up it stays, falls along half a cosine to zero,
        falls linearly to zero, or drops to a tenth at step drop_at. warmup: steps in which it rises linearly,
        from 1/warmup of the peak.
      weight_decay: of adamw, nadamw and lion, per unit of learning rate; on matrices and embeddings
        only (`transformer_jax.train.optimizer.decayed`).
      clip: largest norm of the gradient, over all parameters; None for no clipping.
      accumulate: microbatches per step, each batch / accumulate sequences; the gradient stays that of
        the whole batch.
      evaluate_every: steps between evaluations on the validation split; None: only at the end.
      evaluation_batch: sequences per evaluation step; None: as in training. evaluation_examples: how
        many of the validation split are looked at; None: all. Test sets are always scored whole.
      save_every: steps between checkpoints; None: with each evaluation. One is always written at the
        end. keep: how many stay.
      log_every: steps that one record of the training loss averages over.
      steps_per_dispatch: training steps per call of the compiled program; None: chosen from the
        measured time of a step, 1 with several processes. It changes no result.
      mesh: how many devices cut the batch, the parameters, the heads and the sequence. It changes no
        result but for rounding; a run may go on on another.
      profile: steps of which JAX's profiler writes a trace into the run's directory, "profile"; None: none.
      stop_at: stop when the task's metric on the validation split is this good ("solved").
    """

    steps: int
    batch: int
    optimizer: Literal["adamw", "adam", "nadamw", "radam", "lion", "sgd"] = "adamw"
    learning_rate: float = 1e-3
    weight_decay: float = 0.0
    b1: float = 0.9
    b2: float = 0.999
    schedule: Literal["constant", "cosine", "linear", "drop"] = "cosine"
    warmup: int = 0
    drop_at: int | None = None
    clip: float | None = 1.0
    accumulate: int = 1
    evaluate_every: int | None = None
    evaluation_batch: int | None = None
    evaluation_examples: int | None = None
    save_every: int | None = None
    keep: int = 2
    log_every: int = 50
    steps_per_dispatch: int | None = None
    mesh: Axes = field(default_factory=Axes)
    profile: int | None = None
    stop_at: float | None = None

    def __post_init__(self):
        check_fields(self, "train")
        counts = ("steps", "batch", "accumulate", "evaluate_every", "evaluation_batch", "evaluation_examples")
        for name in (*counts, "save_every", "keep", "log_every", "steps_per_dispatch", "profile"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise BadInput(f"train.{name}={value} must be at least 1.")
        if not self.learning_rate > 0:
            raise BadInput(f"train.learning_rate={self.learning_rate} must be above 0.")
        if self.clip is not None and not self.clip > 0:
            raise BadInput(f"train.clip={self.clip} must be above 0, or None for no clipping.")
        for name in ("b1", "b2"):
            if not 0 <= getattr(self, name) < 1:
                raise BadInput(f"train.{name}={getattr(self, name)} must be at least 0 and below 1.")
        if (self.schedule == "drop") != (self.drop_at is not None) or (self.drop_at or 0) < 0:
            raise BadInput(
                f'train.drop_at={self.drop_at} goes with train.schedule "drop", here "{self.schedule}": give '
                "both, with a step of at least 0, or neither."
            )
        if not 0 <= self.warmup <= self.steps:
            raise BadInput(
                f"train.warmup={self.warmup} steps do not fit into train.steps={self.steps}: give a warm-up "
                f"between 0 and {self.steps}, or train longer."
            )
        if self.batch % self.accumulate:
            raise BadInput(
                f"train.batch={self.batch} does not divide into train.accumulate={self.accumulate} "
                f"microbatches: choose a multiple."
            )
        if self.weight_decay and self.optimizer not in ("adamw", "nadamw", "lion"):
            raise BadInput(
                f"train.weight_decay={self.weight_decay} has no meaning for {self.optimizer}: "
                f"use adamw, nadamw or lion, or set it to 0."
            )
        if self.weight_decay < 0:
            raise BadInput(f"train.weight_decay={self.weight_decay} must not be negative.")
