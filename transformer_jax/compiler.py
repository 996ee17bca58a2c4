"""A workaround for a fault of a compiler, in force before anything is compiled."""

from __future__ import annotations

import importlib.metadata
import os

FUSIONS = "--xla_cpu_experimental_ynn_fusion_type"


def avoid_wrong_numbers() -> None:
    """Turns off YNNPACK fusions in XLA's CPU compiler of jaxlib 0.10 to 0.12.

    With them a chunked recurrence on 64 rows of 64 tokens (retention, the delta rule) came out wrong by
    more than its own size, or NaN, though the same rows four at a time were right; without them both
    agree to the last bit. Full attention is no slower without. A value of the flag that the user set
    stays. Only these versions are known to have fault and flag, and an unknown flag would end the
    process; the conformance suite (`batch_changes_nothing`) tells whether a newer one still needs it.
    """
    flags = os.environ.get("XLA_FLAGS", "")
    version = tuple(int(part) for part in importlib.metadata.version("jaxlib").split(".")[:2])
    if FUSIONS not in flags and (0, 10) <= version <= (0, 12):
        os.environ["XLA_FLAGS"] = f"{flags} {FUSIONS}=".strip()
