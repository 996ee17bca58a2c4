"""Optax from the recipe: clipping, the update rule, and the learning rate over the steps."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import optax

from transformer_jax.train.config import Train


def decayed(name: str) -> bool:
    """Whether weight decay acts on the parameter with this dotted name.

    Customary are matrices: kernels of linear maps and convolutions, and embeddings. Biases, the scales
    of norms and a mechanism's own scalars and rates (decays, gates' offsets) would be pulled to where
    they switch something off.
    """
    return bool({"kernel", "embedding"} & set(name.split(".")))


def update_rule(train: Train, weight_decay: Any = None) -> optax.GradientTransformation:
    """Gradients to updates at learning rate 1; the step multiplies them by `learning_rate`.

    So one compiled program serves every learning rate of a sweep, and every weight decay where the step gives
    it as an array. The parameters are a dict by name.

    Args:
      weight_decay: () float32 in the place of the recipe's own.
    """

    def mask(params: Mapping[str, Any]) -> dict[str, bool]:
        return {name: decayed(name) for name in params}

    betas = {"b1": train.b1, "b2": train.b2}
    decay = {"weight_decay": train.weight_decay if weight_decay is None else weight_decay, "mask": mask}
    rule = {
        "adamw": lambda: optax.adamw(1.0, **betas, **decay),
        "adam": lambda: optax.adam(1.0, **betas),
        "nadamw": lambda: optax.nadamw(1.0, **betas, **decay),
        "radam": lambda: optax.radam(1.0, **betas),
        "lion": lambda: optax.lion(1.0, **betas, **decay),
        "sgd": lambda: optax.sgd(1.0, momentum=train.b1 or None),
    }[train.optimizer]()
    return rule if train.clip is None else optax.chain(optax.clip_by_global_norm(train.clip), rule)


def schedule(train: Train) -> optax.Schedule:
    """Step (counted from 0) to a factor of the peak learning rate: at most 1, reached after the warm-up."""
    falling = max(train.steps - train.warmup, 1)
    after = {
        "constant": lambda: optax.constant_schedule(1.0),
        "cosine": lambda: optax.cosine_decay_schedule(1.0, falling),
        "linear": lambda: optax.linear_schedule(1.0, 0.0, falling),
        "drop": lambda: optax.piecewise_constant_schedule(1.0, {train.drop_at - train.warmup: 0.1}),
    }[train.schedule]()
    if train.warmup == 0:
        return after
    # Step 0 already moves: a rate of zero would waste it.
    rising = optax.linear_schedule(1 / train.warmup, 1.0, train.warmup - 1)
    return optax.join_schedules([rising, after], [train.warmup])


def learning_rate(train: Train, step: jax.Array, peak: jax.Array) -> jax.Array:
    """The rate at `step` for a `peak`, float32 scalars."""
    return peak * schedule(train)(step)
