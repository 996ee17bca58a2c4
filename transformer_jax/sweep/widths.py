"""Widths of the variants: a grid of them, or each solved so that a variant costs what the first one costs."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from transformer_jax.errors import BadInput
from transformer_jax.experiment import Experiment, Variant
from transformer_jax.measure.flops import count_flops
from transformer_jax.model.config import Transformer
from transformer_jax.train.run import Run, build_model
from transformer_jax.train.state import dismantle

STEPS = (8, 4, 2)  # of the size of a head: what vector units like, and finer where that is too coarse
LARGEST = 64  # times the width that the experiment says: a mechanism that needs more never gets there


def settled(experiment: Experiment) -> tuple[Experiment, dict[str, Any] | None]:
    """The experiment with a width in every variant that the grid or the match gives one.

    Returns it, and of a match what was reached, for the record: "what", "within" and, by label, "width",
    "amount" and "ratio" (to the first variant's); None without a match.

    Raises BadInput where no width comes near enough, or one in too large a model only, and where both a grid
    and a match ask for widths.
    """
    match, grid = experiment.match, experiment.tune.width
    if match.what is None:
        lines = (line for variant in experiment.variants for line in _at_each(variant, grid))
        return (dataclasses.replace(experiment, variants=tuple(lines)) if grid else experiment), None
    if grid:
        raise BadInput("tune.width and match.what both decide the widths: leave one of them out.")
    first = experiment.variants[0]
    models = {v.label: v.resolve(experiment.model, experiment.train)[0] for v in experiment.variants}
    target = _amount(experiment, first, models[first.label].width)
    size = _amount(experiment, first, models[first.label].width, parameters)
    found, variants = {}, []
    for variant in experiment.variants:
        of_width = functools.cache(functools.partial(_amount, experiment, variant))
        model = models[variant.label]
        width = model.width
        # A width of its own is the author's word: it stays, and is held to the match like the others.
        if variant is not first and not variant.own("model.width"):
            width = _solved(of_width, target, model, match.within)
            variant = variant.at_width(width)
        ratio = of_width(width) / target
        if not _near(ratio, match.within):
            raise BadInput(
                f"Variant {variant.label!r} comes no nearer to the {match.what} of {first.label!r} than "
                f"{ratio:.3f} of them, at width {width}: raise match.within={match.within:g}, choose other "
                f"sizes, or leave the variant out."
            )
        larger = _amount(experiment, variant, width, parameters) / size
        if larger > match.most_parameters:
            raise BadInput(
                f"Variant {variant.label!r} reaches the {match.what} of {first.label!r} only at width "
                f"{width}, with {larger:,.0f} times its parameters: shorten task.length, make "
                f"{first.label!r} smaller, raise match.most_parameters={match.most_parameters:g}, or "
                f"leave the variant out."
            )
        variants.append(variant)
        found[variant.label] = {"width": width, "amount": of_width(width), "ratio": ratio}
    experiment = dataclasses.replace(experiment, variants=tuple(variants))
    return experiment, {"what": match.what, "within": match.within, "variants": found}


def solve(amount: Callable[[int], float], target: float, *, step: int, most: int) -> int:
    """The multiple of `step` at which an amount that rises with the width comes nearest to `target`, as a
    ratio; the search ends beyond `most`."""
    low, high = 0, 1
    while amount(high * step) < target and high * step < most:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if amount(middle * step) < target else (low, middle)
    return step * min((low or high, high), key=lambda n: abs(math.log(amount(n * step) / target)))


def parameters(run: Run) -> float:
    """Learned numbers."""
    return _abstract(run).parameters()


def state(run: Run) -> float:
    """Bytes of the decoding state of one sequence, at the task's full length."""
    found = _abstract(run).state_bytes()
    if not found:
        names = ", ".join(mixer.name for mixer in run.model.mixers)
        raise BadInput(f"{names} has no decoding state to match: match parameters or flops.")
    return found


def flops(run: Run) -> float:
    """Matrix-product FLOPs per token of the loss and its gradient, nothing recomputed, over one sequence of
    the task's length."""
    task = run.task
    run = dataclasses.replace(run, model=dataclasses.replace(run.model, remat="none"))
    skeleton, params, rest = dismantle(_abstract(run))
    tokens = jax.ShapeDtypeStruct((1, task.length), jnp.int32)
    if task.features:
        tokens = jax.ShapeDtypeStruct((1, task.length, task.features), jnp.float32)

    def total(params, rest, tokens, key):
        # The sum stands for the loss, which has no matrix products.
        return skeleton.assemble(params, rest).training_pass(tokens, dropout=key)[0].sum()

    key = jax.eval_shape(jax.random.key, 0)
    return count_flops(jax.grad(total), params, rest, tokens, key) / task.length


AMOUNTS: dict[str, Callable[[Run], float]] = {"parameters": parameters, "state": state, "flops": flops}


def _solved(of_width: Callable[[int], float], target: float, model: Transformer, within: float) -> int:
    width = 0
    for step in STEPS:
        try:
            width = solve(of_width, target, step=model.heads * step, most=LARGEST * model.width)
        except BadInput:
            if not width:
                raise
            break  # a mechanism that has no heads so small
        if _near(of_width(width) / target, within):
            break
    return width


def _near(ratio: float, within: float) -> bool:
    return abs(ratio - 1) <= within


def _at_each(variant: Variant, widths: tuple[int, ...]) -> tuple[Variant, ...]:
    if variant.own("model.width"):
        return (variant,)
    return tuple(variant.at_width(width, f"{variant.label}, width {width}") for width in widths)


def _amount(
    experiment: Experiment, variant: Variant, width: int, amount: Callable[[Run], float] | None = None
) -> float:
    """What is to be equal, or another amount, of a variant at a width."""
    model, train = variant.at_width(width).resolve(experiment.model, experiment.train)
    try:
        measured = amount or AMOUNTS[experiment.match.what]
        return measured(Run(task=experiment.task, model=model, train=train))
    except BadInput as error:
        raise BadInput(f"Variant {variant.label!r}: {error}") from None


def _abstract(run: Run) -> Any:
    """The model without its arrays."""
    return jax.eval_shape(lambda: build_model(run))
