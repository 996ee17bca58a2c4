"""Times programs against each other: warm, blocked, interleaved, as medians."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Hashable, Mapping
from typing import TypeVar

Name = TypeVar("Name", bound=Hashable)

SHORTEST = 0.02
"""Seconds that one sample lasts at least, so that the clock and the dispatch do not show."""


def interleaved(programs: Mapping[Name, Callable[[], object]], rounds: int) -> dict[Name, float]:
    """Median seconds per call of each program.

    Every round runs all programs one after the other, so that a machine that slows down slows all
    of them down; compare the results of one call only.

    Args:
      programs: name -> a function that returns when its work is done.
      rounds: samples per program.
    """
    calls: dict[Name, int] = {}
    for name, program in programs.items():
        program()  # compiles, allocates
        started = time.perf_counter()
        program()
        calls[name] = max(1, round(SHORTEST / (time.perf_counter() - started)))
    samples: dict[Name, list[float]] = {name: [] for name in programs}
    for _ in range(rounds):
        for name, program in programs.items():
            started = time.perf_counter()
            for _ in range(calls[name]):
                program()
            samples[name].append((time.perf_counter() - started) / calls[name])
    return {name: statistics.median(seconds) for name, seconds in samples.items()}
