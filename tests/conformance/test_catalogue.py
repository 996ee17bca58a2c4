"""Every mechanism of the catalogue passes every check that applies to it."""

from __future__ import annotations

import pytest

from transformer_jax.attention.catalogue import catalogue
from transformer_jax.conformance import CHECKS, prove, subjects

SUBJECTS = [subject for mixer in catalogue().values() for subject in subjects(mixer)]


@pytest.mark.parametrize("name", CHECKS)
@pytest.mark.parametrize("subject", SUBJECTS, ids=lambda s: f"{s.mixer.name}-{s.direction}")
def test_conformance(subject, name):
    result = prove(subject, name)
    if result.outcome == "undefined":
        pytest.skip(result.detail)
    assert result.outcome == "passed", result.detail
