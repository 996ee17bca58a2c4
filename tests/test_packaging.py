"""What the package promises about itself: its dependencies, its layers, its size, its commands."""

from __future__ import annotations

import ast
import configparser
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.quick

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "transformer_jax"
FILES = sorted(PACKAGE.rglob("*.py"))
READ = runpy.run_path(str(ROOT / ".ci" / "read.py"))

# What each part may import besides itself and `errors`, which is everybody's. Imports point up this
# list: no part may import one that comes after it.
LAYERS = {
    "compiler": set(),
    "errors": set(),
    "growth": set(),
    "overrides": set(),
    "user_file": set(),
    "store": set(),
    "parallel": set(),
    "kernels": {"parallel"},
    "attention": {"user_file", "parallel", "kernels"},
    "model": {"attention", "kernels", "overrides", "parallel"},
    "data": {"overrides", "store"},
    "checkpoint": {"parallel", "store"},
    "train": {"attention", "kernels", "data", "model", "checkpoint", "overrides", "parallel", "store"},
    "measure": {"attention", "growth", "model", "train", "overrides", "parallel"},
    "conformance": {"attention", "model", "measure", "parallel"},
    "generation": {"attention", "data", "model", "checkpoint", "train"},
    "tuning": {"overrides"},
    "experiment": {"attention", "data", "model", "train", "tuning", "overrides", "user_file"},
    "sweep": {"data", "measure", "model", "train", "experiment", "overrides", "parallel", "store"},
    "measurement": {"experiment", "measure", "store", "train"},
    "report": {"growth", "overrides", "store"},  # reads files
    "launch": {"parallel"},
    "planner": {
        "data",
        "experiment",
        "growth",
        "kernels",
        "launch",
        "measure",
        "model",
        "overrides",
        "parallel",
        "store",
        "sweep",
        "train",
    },
    "listing": {"attention", "data", "experiment", "overrides"},
    "arguments": {"store"},
    "cli": {
        "arguments",
        "planner",
        "store",
        "parallel",
        "launch",
        "listing",
        "attention",
        "data",
        "measure",
        "conformance",
        "generation",
        "experiment",
        "sweep",
        "measurement",
        "report",
        "overrides",
    },
    "__init__": {"compiler"},
    "__main__": {"cli"},
}
DISTRIBUTION = {"PIL": "pillow", "orbax": "orbax-checkpoint", "tensorflow_datasets": "tensorflow-datasets"}
"""Import names that differ from what is installed."""
UNIMPORTED = {
    "array-record": "TFDS writes and reads it",
    "importlib_resources": "TFDS builders inside a package need it",
}


def part_of(file: Path) -> str:
    return file.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports_of(file: Path) -> set[str]:
    """Every module that a file imports, wherever in the file."""
    names = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{file} imports relatively"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_imports_point_one_way_and_files_stay_short(file):
    part = part_of(file)
    assert part in LAYERS, f"say in LAYERS what {part} may import"
    inside = {name.split(".")[1] for name in imports_of(file) if name.startswith("transformer_jax.")}
    assert inside <= LAYERS[part] | {part, "errors"}, f"{part} is not to import {inside}"
    if part != "checkpoint":
        assert not any(name.startswith("orbax") for name in imports_of(file))
    assert len(file.read_text(encoding="utf-8").splitlines()) <= 400


def test_the_layers_are_in_order():
    order = list(LAYERS)
    for part, below in LAYERS.items():
        assert all(order.index(other) < order.index(part) for other in below), part


def requirements(*extras: str) -> dict[str, str]:
    """Name -> lower bound, as setup.cfg has them."""
    return dict(line.split(">=") for line in READ["requirements"](*extras))


def test_every_requirement_has_one_lower_bound_and_every_floor_is_exact():
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    bounds: dict[str, set[str]] = {}
    for line in READ["requirements"](*config["options.extras_require"]):
        found = re.fullmatch(r"([\w-]+)(?:\[\w+\])?>=([\d.]+)", line)
        assert found, f"{line}: write name>=version, so that CI can test that version"
        bounds.setdefault(found[1], set()).add(found[2])
    assert all(len(versions) == 1 for versions in bounds.values()), bounds
    assert READ["floors"]().count("==") == len(READ["requirements"]("test", "parity"))


def test_what_is_imported_is_required_and_what_is_required_is_imported():
    outside = {name.split(".")[0] for file in FILES for name in imports_of(file)}
    outside -= {*sys.stdlib_module_names, "transformer_jax", "torch", "sentencepiece"}  # these where found
    imported = {DISTRIBUTION.get(name, name) for name in outside}
    assert imported | set(UNIMPORTED) == set(requirements())


def test_importing_everything_does_not_bring_in_tensorflow():
    modules = [
        ".".join(file.relative_to(ROOT).with_suffix("").parts)
        for file in FILES
        if file.stem not in ("__init__", "__main__", "torch_model")
    ]
    code = f"import sys, importlib\nfor m in {modules!r}: importlib.import_module(m)\n"
    code += "print('tensorflow' in sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert run.stdout.splitlines()[-1] == "False"


def test_the_readme_has_its_two_commands():
    run, test = READ["block"]("run"), READ["block"]("test")
    for command in (run, test):
        assert command.startswith("python3 -m venv"), "each command starts from nothing"
        assert "pip install" in command
    assert "experiments/quickstart.py" in run
    assert "pytest" in test and '".[test]"' in test


def test_what_the_documents_name_is_there():
    for document in ("README.md", "CONTRIBUTING.md", "docs/writing_a_mechanism.md"):
        text = (ROOT / document).read_text(encoding="utf-8")
        links = re.findall(r"\]\((?!https?:)([^)#]+)", text)
        files = re.findall(r"`((?:transformer_jax|experiments|tests|notebooks|\.ci)/[\w./]*)`", text)
        for name in {*links, *files}:
            assert (ROOT / name).exists() or (ROOT / document).parent.joinpath(name).exists(), (
                f"{document} names {name}, which is not there"
            )
