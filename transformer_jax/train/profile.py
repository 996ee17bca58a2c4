"""A trace of some training steps by JAX's profiler, to be opened with TensorBoard or Perfetto."""

from __future__ import annotations

from pathlib import Path

import jax


class Profile:
    """Traces `steps` steps (None: none) from the first call after compilation on, into `folder`."""

    def __init__(self, folder: Path, steps: int | None):
        self.folder, self.left = folder, steps
        self.ends: int | None = None  # the step at which the trace that is being written ends

    def advance(self, step: int, *, compiled: bool) -> None:
        """To be called before the step after `step` is dispatched."""
        if self.ends is not None and step >= self.ends:
            self.close()
        if self.left and compiled:
            self.ends, self.left = step + self.left, None
            jax.profiler.start_trace(str(self.folder))

    def close(self) -> None:
        """Ends the trace; what is dispatched is waited for."""
        if self.ends is not None:
            self.ends = None
            jax.effects_barrier()
            jax.profiler.stop_trace()
