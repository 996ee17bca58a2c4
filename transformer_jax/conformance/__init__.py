"""The conformance suite: what every mechanism, ours or a user's, must prove before it is trusted.

    python -m transformer_jax check gated_delta_net
    python -m transformer_jax check my_mechanism.py

A check is a function of a `Subject` (one mechanism in one direction) that raises AssertionError with
the figure where it fails, and `Undefined` with the mechanism's own reason where it does not apply.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

import jax

from transformer_jax.attention import catalogue
from transformer_jax.attention.contract import Mixer
from transformer_jax.conformance import cost, meaning, sharding, time, training
from transformer_jax.conformance.subject import Subject, Undefined, optimized

CHECKS: dict[str, Callable[[Subject], None]] = {
    check.__name__: check
    for check in (
        meaning.definition_is_matched,
        meaning.matrix_is_effective,
        meaning.cross_is_matched,
        meaning.rounding_is_bounded,
        meaning.large_inputs_stay_finite,
        time.future_does_not_leak,
        time.splitting_changes_nothing,
        time.padding_changes_nothing,
        time.packing_changes_nothing,
        cost.flops_are_stated,
        cost.state_is_stated,
        cost.bytes_are_stated,
        cost.memory_is_not_quadratic,
        cost.undefined_is_refused,
        training.trains_in_a_model,
        training.batch_changes_nothing,
        sharding.sharding_changes_nothing,
        sharding.sequence_changes_nothing,
    )
}


@dataclass(frozen=True)
class Result:
    """What one check found: passed, failed (with the figure) or undefined (with the reason)."""

    variant: str
    direction: str
    check: str
    outcome: Literal["passed", "failed", "undefined"]
    detail: str = ""


def subjects(mixer: type[Mixer]) -> list[Subject]:
    """The mechanism in each direction that it is defined for."""
    options = dict(mixer.small)
    return [
        Subject(mixer, mode == "causal", options)
        for mode in ("causal", "bidirectional")
        if mixer.capability.defined(mode)
    ]


def prove(subject: Subject, name: str) -> Result:
    """Runs one check, in float64 where it asks for it. Any other exception is a failure too."""
    found = lambda outcome, detail="": Result(subject.mixer.name, subject.direction, name, outcome, detail)
    try:
        with jax.enable_x64(True), optimized(False):
            CHECKS[name](subject)
    except Undefined as reason:
        return found("undefined", str(reason))
    except AssertionError as failure:
        return found("failed", str(failure))
    except Exception as failure:  # a mechanism may break in any way; the suite must name it and go on
        return found("failed", f"{type(failure).__name__}: {failure}")
    return found("passed")


def check(target: str) -> Iterator[Result]:
    """Proves a mechanism of the catalogue by name, or every one that a Python file defines.

    Raises BadInput where there is no such name or file.
    """
    mixers = catalogue.load(target) if target.endswith(".py") else [catalogue.find(target)]
    for mixer in mixers:
        for subject in subjects(mixer):
            for name in CHECKS:
                yield prove(subject, name)
