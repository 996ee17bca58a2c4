"""The processes of a run as one group: they agree, they stop together, and none waits for one that is lost.

A collective whose partner is gone waits for ever. So every process tells the coordination service of JAX
each second that it lives and how far it is; process 0 reads that, and once one has been silent for
LOST_SECONDS, or behind the others and motionless for STUCK_SECONDS, it is named and all end with the code
LOST. A restart continues from the last checkpoint. With one process everything here is trivial.
"""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import json
import os
import re
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NoReturn

import jax
from jax._src import distributed  # its client is what Orbax uses too; there is no public name for it

from transformer_jax.errors import BadInput
from transformer_jax.parallel.processes import Location
from transformer_jax.parallel.roll_call import roll_call, say

LOST = 75  # exit code: another process is gone, start all again (EX_TEMPFAIL of sysexits.h)
ABORTED = 134  # exit code: of the runtime, as a shell tells it (128 + 6)
PREEMPTED = 143  # exit code: stopped by SIGTERM, everything saved (128 + 15)
GRACE = "TRANSFORMER_JAX_GRACE"  # of the environment: seconds that a job has from SIGTERM to its end
ARRIVE_SECONDS, LOST_SECONDS, STUCK_SECONDS = 300.0, 15.0, 600.0
# Before a process begins program n it has read the result of n - 3 (training: n - 2), which all computed.
AHEAD = 3
DAY = 86_400_000  # ms
AGAIN = "All processes end; the same command continues from the last checkpoint."

_kept: list[Any] = []  # of what the C library has only the address
_calls, _agreements = itertools.count(1), itertools.count(1)
_work = 0
_end_at: tuple[int, int] | None = None  # call, signal


def first() -> bool:
    """Whether this process is the one that writes."""
    return jax.process_index() == 0


def grace() -> float:
    """Seconds from SIGTERM to the end, as the job was told at its launch; infinite where it was told none."""
    told = os.environ.get(GRACE, "inf")
    try:
        return float(told)
    except ValueError:
        raise BadInput(
            f"{GRACE}={told} in the environment is no number of seconds: unset it, or set one."
        ) from None


def agreed(function: Callable[[], Any]) -> Any:
    """What `function` returns, or the BadInput that it raises, in process 0: the same in every process.

    Every process must call it; the value must be one that JSON can hold.
    """
    if jax.process_count() == 1:
        return function()
    client, key = distributed.global_state.client, f"agreed/{next(_agreements)}"
    if first():
        try:
            said = {"value": function()}
        except BadInput as error:
            said = {"error": str(error)}
        client.key_value_set(key, json.dumps(said))
    said = json.loads(client.blocking_key_value_get(key, DAY))
    if "error" in said:
        raise BadInput(said["error"])
    return said["value"]


def objection(text: str | None) -> str | None:
    """The first objection that any process has; None where none has one. Every process must call it."""
    if jax.process_count() == 1:
        return text
    client, key = distributed.global_state.client, f"objections/{next(_agreements)}"
    if text is not None:
        client.key_value_set(f"{key}/{jax.process_index():06}", text)
    client.wait_at_barrier(key, DAY)
    return min(client.key_value_dir_get(key), default=(key, None))[1]


def each(function: Callable[[], None]) -> None:
    """Calls `function` in every process; the BadInput that it raises in one is raised in all, which say whose
    it is. Every process must call it."""
    if jax.process_count() == 1:
        return function()
    said = None
    try:
        function()
    except BadInput as error:
        said = f"Process {jax.process_index()} on {socket.gethostname()}: {error}"
    if (said := objection(said)) is not None:
        raise BadInput(said)


def stop(heard: int | None) -> int | None:
    """The signal at which all processes stop now, or None.

    Every process calls it before each collective program; what one has heard, all obey at the same call.

    Args:
      heard: the signal that this process has received.
    """
    global _work, _end_at
    if jax.process_count() == 1:
        return heard
    client = distributed.global_state.client
    _work = call = next(_calls)
    if _end_at is None:
        if not first():
            if heard is not None:
                client.key_value_set("stop/asked", str(heard), allow_overwrite=True)
        elif (asked := heard or _read(client, "stop/asked")) is not None:
            # Written before process 0 takes part in this program: none is past the next AHEAD - 1 without it.
            client.key_value_set("stop/at", json.dumps([call + AHEAD, int(asked)]))
        if (at := _read(client, "stop/at")) is not None:
            _end_at = tuple(json.loads(at))
    return _end_at[1] if _end_at and call >= _end_at[0] else None


def _read(client: Any, key: str) -> str | None:
    try:
        return client.key_value_try_get(key)
    except jax.errors.JaxRuntimeError as error:
        if "NOT_FOUND" in str(error):
            return None
        raise


@contextlib.contextmanager
def joined(
    location: Location,
    *,
    arrive: float = ARRIVE_SECONDS,
    lost: float = LOST_SECONDS,
    stuck: float = STUCK_SECONDS,
) -> Iterator[None]:
    """Inside, the processes of `location` are one JAX system; whatever ends one of them ends all.

    Must be entered before JAX is used. A failure ends the process at once, with the code of the failure:
    JAX's own way out would wait for the others.

    Args:
      arrive, lost, stuck: seconds: to wait for every process at the start; of silence after which a process
        counts as lost; without progress, while others have made some, after which it counts as stuck.

    Raises BadInput where a process does not arrive.
    """
    if location.processes == 1:
        yield
        return
    roll_call(location, timeout=arrive)
    _explain_aborts(location)
    jax.config.update("jax_enable_preemption_service", False)  # `stop` hears every signal, at every step
    jax.distributed.initialize(
        location.coordinator,
        location.processes,
        location.process,
        local_device_ids=None if location.device is None else [location.device],
        cluster_detection_method="deactivate",
        heartbeat_timeout_seconds=int(4 * lost),  # the net below ours
    )
    watch = Watch(location, lost=lost, stuck=stuck)
    try:
        yield
    except BadInput as error:
        watch.end(str(error), 2)
    except KeyboardInterrupt:
        watch.end(f"{watch.me} was interrupted.", 130)
    except Exception as error:
        traceback.print_exc()
        if re.match(r"(UNKNOWN|UNAVAILABLE|INTERNAL|ABORTED|DEADLINE_EXCEEDED): ", str(error)):
            # A collective breaks as soon as a partner dies: process 0 will have noticed a little later.
            time.sleep(lost + 5)
        watch.end(f"{watch.me} failed: {_line(error)}. Its log says more.", 1)
    except SystemExit as leaving:
        watch.leave()
        raise leaving from None
    else:
        watch.leave()


class Watch:
    """The thread that tells of this process and hears of the others."""

    def __init__(self, location: Location, *, lost: float, stuck: float):
        self.location, self.client = location, distributed.global_state.client
        self.me = f"Process {location.process} on {socket.gethostname()}"
        self.judge = Judge(location.processes, lost=lost, stuck=stuck)
        self.left = threading.Event()
        self.client.key_value_set(f"name/{location.process}", self.me)
        threading.Thread(target=self._work, daemon=True, name="watch").start()

    def _work(self) -> None:
        for beat in itertools.count():
            if self.left.wait(1.0):
                return
            pulse = json.dumps([beat, _work])
            self.client.key_value_set(f"pulse/{self.location.process}", pulse, allow_overwrite=True)
            if (verdict := _read(self.client, "verdict")) is not None:
                self.exit(*json.loads(verdict))
            if self.location.process == 0:
                found = self.client.key_value_dir_get("pulse")
                pulses = {int(key.rpartition("/")[2]): tuple(json.loads(text)) for key, text in found}
                number, sentence = self.judge(pulses, time.monotonic())
                if number is None and sentence:
                    say(sentence)
                elif sentence:
                    name = _read(self.client, f"name/{number}") or f"Process {number}"
                    self.end(f"{name} {sentence} {AGAIN}", LOST)

    def end(self, sentence: str, code: int) -> NoReturn:
        """Ends this process and tells the others to."""
        with contextlib.suppress(Exception):  # another verdict came first
            self.client.key_value_set("verdict", json.dumps([sentence, code]))
        self.exit(sentence, code)

    def exit(self, sentence: str, code: int) -> NoReturn:
        say(f"Error: {sentence}")
        sys.stdout.flush()
        if self.location.process == 0:
            time.sleep(3)  # the service lives here: the others must have read the verdict
        os._exit(code)

    def leave(self) -> None:
        """Waits for the others, so that the end of one is no loss to them."""
        self.client.wait_at_barrier("end", DAY)
        self.left.set()


class Judge:
    """Finds the process that is lost or stuck."""

    def __init__(self, processes: int, *, lost: float, stuck: float):
        self.processes, self.lost, self.stuck = processes, lost, stuck
        self.heard: dict[int, tuple[Any, float]] = {}
        self.moved: dict[int, tuple[Any, float]] = {}
        self.warned = False

    def __call__(self, pulses: Mapping[int, tuple[int, int]], now: float) -> tuple[int | None, str]:
        """The process and the end of a sentence about it; (None, "") where all is well.

        Args:
          pulses: process -> how often it has been heard, how many programs it has begun. now: seconds.
        """
        for number in range(self.processes):
            beat, work = pulses.get(number, (-1, 0))
            for seen, value in ((self.heard, beat), (self.moved, work)):
                if number not in seen or seen[number][0] != value:
                    seen[number] = (value, now)
        for number, (_, since) in self.heard.items():
            if now - since > self.lost:
                return number, f"is lost: nothing was heard of it for {self.lost:.0f} s."
        behind = min(self.moved, key=lambda number: self.moved[number])
        work, since = self.moved[behind]
        if now - since <= self.stuck:
            self.warned = False
        elif work < max(work for work, _ in self.moved.values()):
            return behind, f"is stuck: it lives, but for {self.stuck:.0f} s the others have waited for it."
        elif not self.warned:
            self.warned = True
            return None, f"No process has begun a step for {self.stuck:.0f} s; all are at the same place."
        return None, ""


def _explain_aborts(location: Location) -> None:
    """JAX's runtime aborts from C++ when the coordinator is gone, and for reasons of its own: each gets its
    sentence. A process whose coordinator does not answer ends with LOST, any other with ABORTED."""
    host, _, port = (location.coordinator or "").rpartition(":")
    me = f"process {location.process} on {socket.gethostname()}"

    def aborted(number: int) -> None:
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=5.0).close()
        except OSError:
            os.write(
                2, f"Error: Process 0, the coordinator, is lost, or the network to it. {AGAIN}\n".encode()
            )
            os._exit(LOST)
        os.write(2, f"Error: The runtime of {me} aborted; what it said about that stands above.\n".encode())
        os._exit(ABORTED)

    handler = ctypes.CFUNCTYPE(None, ctypes.c_int)(aborted)
    ctypes.CDLL(None).signal(signal.SIGABRT, handler)
    _kept.append(handler)


def _line(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
