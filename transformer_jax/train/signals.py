"""Signals that ask a run to end: noted when they come, obeyed between two programs."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from transformer_jax.parallel.group import objection, stop


class Interrupted(Exception):
    """A signal asked the process to end."""


class Signals:
    """SIGTERM and SIGINT; of several processes, what one hears all obey at the same place.

    Attributes:
      heard: the one that this process has received. obeyed: the one at which all stop.
    """

    def __init__(self):
        self.heard: int | None = None
        self.obeyed: int | None = None

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Inside, a first signal is noted; a second one ends the process at once."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        old = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}

        def hear(number: int, frame: Any) -> None:
            self.heard = number
            for each, handler in old.items():
                signal.signal(each, handler)

        for number in old:
            signal.signal(number, hear)
        try:
            yield
        finally:
            for number, handler in old.items():
                signal.signal(number, handler)

    def stopping(self) -> bool:
        """Whether a signal has come; asked before each program, and answered alike by all processes."""
        self.obeyed = stop(self.heard)
        return self.obeyed is not None

    def at_end(self) -> None:
        """Obeys one that came while the result was written: what would follow the run must not begin."""
        heard = objection(None if self.heard is None else str(self.heard))
        if heard is not None:
            raise SystemExit(128 + int(heard))
