"""The compiler's flag is set in time, or the user hears that it was not."""

from __future__ import annotations

import importlib.metadata
import os
import subprocess
import sys

import pytest

pytestmark = pytest.mark.quick

AFFECTED = (0, 10) <= tuple(map(int, importlib.metadata.version("jaxlib").split(".")[:2])) <= (0, 12)


@pytest.mark.skipif(not AFFECTED, reason="this jaxlib is not known to have the fault")
@pytest.mark.parametrize(
    ("first", "late"),
    [("import jax", False), ("import jax; jax.devices()", True)],
    ids=["jax only imported", "jax used"],
)
def test_who_uses_jax_before_the_package_is_warned(first, late):
    program = f"{first}; import transformer_jax, os; print(os.environ['XLA_FLAGS'])"
    clean = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    clean["JAX_PLATFORMS"] = "cpu"
    ended = subprocess.run([sys.executable, "-c", program], env=clean, capture_output=True, text=True)
    assert ended.returncode == 0 and "ynn_fusion_type=" in ended.stdout
    assert ("import transformer_jax first" in ended.stderr) == late
