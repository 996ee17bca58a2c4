"""The page of all mechanisms says what the code says."""

from __future__ import annotations

from pathlib import Path

import pytest

from transformer_jax.attention.catalogue import catalogue
from transformer_jax.attention.overview import page

pytestmark = pytest.mark.quick

PAGE = Path(__file__).resolve().parents[2] / "docs" / "mechanisms.md"


def test_the_page_is_up_to_date():
    assert PAGE.read_text() == page(), "write it anew: transformer-jax list --markdown > docs/mechanisms.md"


def test_every_mechanism_has_a_section_and_a_paper():
    text = page()
    for name, mixer in catalogue().items():
        if mixer.__module__.startswith("transformer_jax."):
            assert f"### {name}\n" in text and mixer.paper and mixer.__doc__
