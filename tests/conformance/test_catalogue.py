"""Every mechanism of the catalogue passes every check that applies to it.

The checks of `ALWAYS`, and all of those of a `SAMPLE` of the engines, run whenever the tests do; the rest is
marked slow, and CI runs it. The check on a mesh runs in a process with eight devices, for two of them always;
that of the sequence is in `test_sequence`.
"""

from __future__ import annotations

import pytest

from transformer_jax.attention.catalogue import catalogue
from transformer_jax.conformance import CHECKS, prove, subjects

ALWAYS = {
    "definition_is_matched",
    "future_does_not_leak",
    "flops_are_stated",
    "state_is_stated",
    "undefined_is_refused",
}
SAMPLE = {
    "full",
    "sliding_window",
    "bigbird",
    "linear",
    "performer",
    "retention",
    "gated_delta_net",
    "linformer",
    "strided",  # interleaved sequences
    "mlstm",  # a stabilizer
    "delta_product",  # several micro-steps per token
}


ON_A_MESH = "sharding_changes_nothing"
MESH_SAMPLE = {"full", "linear"}


def marks(name: str, check: str):
    if check in ALWAYS and name in SAMPLE:
        return pytest.mark.quick
    if check == ON_A_MESH:
        return () if name in MESH_SAMPLE else pytest.mark.slow
    return () if check in ALWAYS or name in SAMPLE else pytest.mark.slow


CASES = [
    pytest.param(
        subject,
        check,
        id=f"{subject.mixer.name}-{subject.direction}-{check}",
        marks=marks(subject.mixer.name, check),
    )
    for mixer in catalogue().values()
    for subject in subjects(mixer)
    for check in CHECKS
    if check != "sequence_changes_nothing"
]


@pytest.mark.parametrize("subject, check", CASES)
def test_conformance(subject, check, request):
    elsewhere = check == ON_A_MESH and request.getfixturevalue("on_eight_devices")
    result = elsewhere(prove, subject, check) if elsewhere else prove(subject, check)
    if result.outcome == "undefined":
        pytest.skip(result.detail)
    assert result.outcome == "passed", result.detail


def test_the_sample_is_in_the_catalogue():
    assert catalogue().keys() >= SAMPLE and CHECKS.keys() >= ALWAYS
