"""Batches ahead of time: a thread gathers the next stack and puts it on the devices while a step runs."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, Protocol

import jax
import numpy as np

from transformer_jax.errors import BadInput
from transformer_jax.parallel.rows import spread

STACK_BYTES, STACK_MOST = 2**21, 16


def room(batch_bytes: int) -> int:
    """For how many batches of that size a stack has room."""
    return max(1, min(STACK_MOST, STACK_BYTES // batch_bytes))


class Stream(Protocol):
    """Training batches whose position can be saved."""

    def __iter__(self) -> Iterator[dict[str, np.ndarray]]: ...

    def __next__(self) -> dict[str, np.ndarray]: ...

    def state(self) -> dict[str, Any]: ...

    def restore(self, state: dict[str, Any]) -> None: ...


class Stack(NamedTuple):
    """count: batches that are meant; batches: (k, B, ...) on the devices, k >= count.

    position: of the stream after them.
    """

    count: int  # type: ignore[assignment]  # hides tuple.count, which nobody needs here
    batches: dict[str, jax.Array]
    position: dict[str, Any]


class Feed:
    """Stacks of batches, as many ahead as one dispatch needs.

    A stack has room for the same number of batches k throughout, so that one program is compiled; k
    follows from the size of a batch alone, never from a measurement.

    Args:
      stream: the batches, positioned at `step`.
      step: steps done. stop: step -> the step at which the stack that starts there must end at the latest.
      most: k; None: 1 for large batches, up to 16 for small ones.
      place: sharding of a stack. rows, batch: which rows of how many `stream` makes.

    Attributes:
      ask: how many batches the next stack shall hold (at most k).
      waited: seconds that `take` has waited for data.
    """

    def __init__(
        self,
        stream: Stream,
        *,
        step: int,
        stop: Callable[[int], int],
        most: int | None,
        place: jax.sharding.Sharding,
        rows: np.ndarray,
        batch: int,
    ):
        self.stream, self.step, self.stop, self.most = stream, step, stop, most
        self.place, self.rows, self.batch = place, rows, batch
        self.ask, self.waited = most or 1, 0.0
        self.ready: queue.Queue[Stack | BaseException] = queue.Queue(maxsize=2)
        self.closed = threading.Event()
        self.thread = threading.Thread(target=self._work, daemon=True, name="feed")
        self.thread.start()

    def take(self) -> Stack:
        """The next stack. Raises what the stream raised."""
        began = time.perf_counter()
        item = self.ready.get()
        self.waited += time.perf_counter() - began
        if isinstance(item, BaseException):
            raise item
        return item

    def close(self) -> None:
        """Stops the thread; what is ready and untaken is dropped."""
        self.closed.set()
        while self.thread.is_alive():
            try:
                self.ready.get_nowait()
            except queue.Empty:
                self.thread.join(0.01)

    def _work(self) -> None:
        try:
            while not self.closed.is_set():
                last = self.stop(self.step)
                if last <= self.step:
                    return
                self.ready.put(self._stack(last - self.step))
        except BaseException as error:  # handed to the training thread, which raises it
            self.ready.put(error)

    def _stack(self, at_most: int) -> Stack:
        batches = [self._next()]
        if self.most is None:
            self.most = room(sum(array.nbytes for array in batches[0].values()))
        count = min(self.ask, self.most, at_most)
        batches += [self._next() for _ in range(count - 1)]
        self.step += count
        stack = {name: self._room([batch[name] for batch in batches]) for name in batches[0]}
        placed = {
            name: spread(local, self.place, self.rows, self.batch, axis=1) for name, local in stack.items()
        }
        return Stack(count, placed, self.stream.state())

    def _next(self) -> dict[str, np.ndarray]:
        try:
            return next(self.stream)
        except StopIteration:
            raise BadInput("The training data ended: a training stream must repeat.") from None

    def _room(self, arrays: list[np.ndarray]) -> np.ndarray:
        """(count, B, ...) in (k, B, ...); new memory each time, because the device may use it in place."""
        stack = np.zeros((self.most, *arrays[0].shape), arrays[0].dtype)
        for i, array in enumerate(arrays):
            stack[i] = array
        return stack
