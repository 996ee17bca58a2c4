"""A workaround for a fault of a compiler, in force before anything is compiled."""

from __future__ import annotations

import importlib.metadata
import os
import sys
import warnings

FUSIONS = "--xla_cpu_experimental_ynn_fusion_type"


def avoid_wrong_numbers() -> None:
    """Turns off YNNPACK fusions in XLA's CPU compiler of jaxlib 0.10 to 0.12.

    With them a chunked recurrence on 64 rows of 64 tokens (retention, the delta rule) came out wrong by
    more than its own size, or NaN, though the same rows four at a time were right; without them both
    agree to the last bit. Full attention is no slower without. A value of the flag that the user set
    stays. A program that has used JAX before it imports this package is warned: the compiler has read its
    flags by then. Only these versions are known to have fault and flag, and an unknown flag would end the
    process; the conformance suite (`batch_changes_nothing`) tells whether a newer one still needs it.
    """
    flags = os.environ.get("XLA_FLAGS", "")
    version = tuple(int(part) for part in importlib.metadata.version("jaxlib").split(".")[:2])
    if FUSIONS not in flags and (0, 10) <= version <= (0, 12):
        os.environ["XLA_FLAGS"] = f"{flags} {FUSIONS}=".strip()
        if _compiler_has_started():
            warnings.warn(
                "JAX was used before transformer_jax was imported, so a compiler fault that makes recurrent "
                "attention wrong on CPUs could not be switched off: import transformer_jax first.",
                stacklevel=3,
            )


def _compiler_has_started() -> bool:
    bridge = sys.modules.get("jax._src.xla_bridge")  # no public function tells without starting it
    return bridge is not None and bridge.backends_are_initialized()
