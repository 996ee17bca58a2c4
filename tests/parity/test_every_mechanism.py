"""No mechanism enters the catalogue without a witness outside of this project."""

from __future__ import annotations

from pathlib import Path

from transformer_jax.attention.catalogue import catalogue
from transformer_jax.attention.parallel import ParallelMixer


def test_every_mechanism_is_compared_with_other_people_s_code():
    """A layer of several is what its parts make, each of which is compared."""
    tests = "".join(path.read_text(encoding="utf-8") for path in Path(__file__).parent.glob("test_*.py"))
    alone = (name for name, mixer in catalogue().items() if not issubclass(mixer, ParallelMixer))
    assert not [name for name in alone if f'"{name}"' not in tests]


def test_every_golden_file_is_read_and_says_where_it_comes_from():
    folder = Path(__file__).parent
    tests = "".join(path.read_text(encoding="utf-8") for path in folder.glob("test_golden_*.py"))
    origins = (folder / "golden" / "README.md").read_text(encoding="utf-8")
    for file in (folder / "golden").glob("*.npz"):
        assert f'"{file.stem}"' in tests and f"`{file.stem}`" in origins, file.name
