"""Settings of every test, and a process with eight devices."""

from __future__ import annotations

from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import jax
import pytest

# Implicit rank promotion has hidden real bugs; in tests it is an error.
jax.config.update("jax_numpy_rank_promotion", "raise")


@pytest.fixture(scope="session")
def on_eight_devices():
    """Calls a function of an importable module, in a process of its own that has eight devices."""
    from tests.eight_devices import begin

    with ProcessPoolExecutor(1, mp_context=get_context("spawn"), initializer=begin) as pool:
        yield lambda function, *args, **kw: pool.submit(function, *args, **kw).result()
