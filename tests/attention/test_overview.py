"""The page of all mechanisms says what the code says."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import jax
import pytest

from transformer_jax.attention.catalogue import catalogue
from transformer_jax.attention.overview import page

pytestmark = pytest.mark.quick

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "mechanisms.md"


WRITTEN_WITH = (0, 10)
"""The JAX whose choice of what to keep for the backward pass the page shows; another may keep less."""


def test_the_page_is_up_to_date():
    texts = PAGE.read_text(), page()
    if jax.__version_info__[:2] != WRITTEN_WITH:
        texts = tuple(re.sub(r"\| [\d,]+ \| (?=\[|doi)", "| ", text) for text in texts)
    assert texts[0] == texts[1], "write it anew: transformer-jax list --markdown > docs/mechanisms.md"


OURS = {name: m for name, m in catalogue().items() if m.__module__.startswith("transformer_jax.")}


def test_every_mechanism_has_a_section_and_a_paper_and_stands_in_the_readme():
    text, readme = page(), (ROOT / "README.md").read_text()
    for name, mixer in OURS.items():
        assert f"### {name}\n" in text and mixer.paper and mixer.__doc__
        assert f"`{name}`" in readme


PLACE = re.compile(
    r"\b(?i:equation|section|lemma|theorem|definition|algorithm|figure|table|appendix)s? "
    r'(\d|[A-Z]\b|"[^"]+")'
)
"""A place in a paper: its number, its letter, or the title of a section in quotes."""


@pytest.mark.parametrize("name", OURS)
def test_every_mechanism_says_where_in_its_paper_it_stands(name):
    """In the docstring of its class or of its definition; an inherited one is of another mechanism."""
    mixer = OURS[name]
    definition = vars(mixer).get("definition")
    said = " ".join(f"{mixer.__doc__} {definition.__doc__ if definition else ''}".split())
    assert PLACE.search(said), (
        f"{inspect.getfile(mixer)}: neither the docstring of {mixer.__name__} nor that of its definition "
        f"names an equation, section, lemma, theorem, algorithm, figure, table or appendix of {mixer.paper}."
    )


def test_a_variant_is_one_short_file():
    for mixer in OURS.values():
        assert len(Path(inspect.getfile(mixer)).read_text().splitlines()) <= 150
