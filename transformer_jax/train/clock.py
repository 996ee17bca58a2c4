"""What a run measures of its own time."""

from __future__ import annotations

import time
from collections.abc import Mapping


class Clock:
    """Seconds of a run, over all its sessions.

    Attributes:
      before: of earlier sessions. busy: in training steps, compilation left out. waited: of those, for data.
      steps: how many steps `busy` is about.
    """

    def __init__(self, before: float = 0.0, busy: float = 0.0, waited: float = 0.0, steps: int = 0):
        self.before, self.busy, self.waited, self.steps = before, busy, waited, steps
        self.start()

    @classmethod
    def of(cls, record: Mapping[str, float]) -> Clock:
        """One that goes on from a record."""
        return cls(record["seconds"], record["busy"], record["waited"], int(record["timed_steps"]))

    def record(self) -> dict[str, float]:
        return {
            "seconds": self.seconds(),
            "busy": self.busy,
            "waited": self.waited,
            "timed_steps": self.steps,
        }

    def start(self) -> None:
        """A session begins."""
        self.began = self.mark = time.perf_counter()
        self._lap = (0.0, 0)

    def seconds(self) -> float:
        """Since the start of training, without the gaps between sessions."""
        return self.before + time.perf_counter() - self.began

    def lapsed(self) -> float:
        """Seconds since this was last asked."""
        now = time.perf_counter()
        elapsed, self.mark = now - self.mark, now
        return elapsed

    def count(self, steps: int, seconds: float) -> None:
        """So many training steps took so long."""
        self.busy, self.steps = self.busy + seconds, self.steps + steps

    def lap(self) -> float | None:
        """Steps a second since the last lap; None, and no new lap, where none was counted."""
        busy, steps = self.busy - self._lap[0], self.steps - self._lap[1]
        if busy <= 0 or steps <= 0:
            return None
        self._lap = (self.busy, self.steps)
        return steps / busy

    def speed(self) -> tuple[float, float]:
        """Steps a second over the whole run, and the share of their time that waited for data."""
        return (self.steps / self.busy, self.waited / self.busy) if self.busy else (0.0, 0.0)
