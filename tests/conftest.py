"""Settings of every test, and a process with eight devices."""

from __future__ import annotations

import os
from concurrent.futures import ProcessPoolExecutor
from importlib.metadata import version
from importlib.util import find_spec
from multiprocessing import get_context

# Tests run many small programs once or twice: on a CPU compiling is what takes their time, and three quarters
# of that go into machine code that would be faster. (The flag chooses emitters that need no MLIR.) What a
# test reads in a program, arrays, products and collectives, stays the same. Both settings reach the programs
# that tests start, too. Who needs the code that users get asks for it: `for_users`, `as_for_users`.
if not any(find_spec(plugin) for plugin in ("jax_cuda12_plugin", "jax_cuda13_plugin")):
    os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
if version("jaxlib").startswith("0.10."):  # later ones do not know this flag, and end where they meet it
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_cpu_use_fusion_emitters=false"

import jax
import pytest

# Implicit rank promotion has hidden real bugs; in tests it is an error.
jax.config.update("jax_numpy_rank_promotion", "raise")


@pytest.fixture
def for_users(monkeypatch):
    """A TPU's compiler, in programs that a test starts as well, does what it does for users."""
    name = "jax_disable_most_optimizations"
    monkeypatch.setenv(name.upper(), "0")
    before = jax.config.values[name]
    jax.config.update(name, False)
    yield
    jax.config.update(name, before)


@pytest.fixture
def as_for_users(monkeypatch):
    """Calls a function of an importable module in a process of its own, in which CPUs' machine code is
    optimized as it is for users: whoever compares bits of two programs needs that."""
    flags = os.environ.get("XLA_FLAGS", "").split()
    monkeypatch.setenv("XLA_FLAGS", " ".join(flag for flag in flags if "fusion_emitters" not in flag))
    monkeypatch.setenv("JAX_DISABLE_MOST_OPTIMIZATIONS", "0")
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        yield lambda function, *args: pool.submit(function, *args).result()


@pytest.fixture(scope="session")
def on_eight_devices():
    """Calls a function of an importable module, in a process of its own that has eight devices."""
    from tests.eight_devices import begin

    with ProcessPoolExecutor(1, mp_context=get_context("spawn"), initializer=begin) as pool:
        yield lambda function, *args, **kw: pool.submit(function, *args, **kw).result()
