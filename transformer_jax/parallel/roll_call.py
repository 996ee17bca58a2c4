"""The roll call before a run of several processes: nobody starts until all are there; who is not is named.

JAX's own initialization waits too, but ends the process from C++ without saying for whom it waited. Process 0
listens on the port above the coordinator's; the others call, say their number, and wait for its answer.
"""

from __future__ import annotations

import contextlib
import selectors
import socket
import sys
import time
from collections.abc import Callable, Iterable

from transformer_jax.errors import BadInput
from transformer_jax.parallel.processes import Location

REMINDER_SECONDS = 10
GO = "go"


def say(sentence: str) -> None:
    print(sentence, file=sys.stderr, flush=True)


def roll_call(location: Location, *, timeout: float, say: Callable[[str], None] = say) -> None:
    """Returns when every process is there.

    Args:
      timeout: seconds to wait. say: is told every ten seconds who is missing.

    Raises BadInput where a process did not come in time, two have one number, or the port is taken.
    """
    host, _, port = (location.coordinator or "").rpartition(":")
    if location.process == 0:
        _host(location, int(port), timeout, say)
    else:
        _guest(location, host.strip("[]"), int(port) + 1, timeout, say)


def _host(location: Location, port: int, timeout: float, say: Callable[[str], None]) -> None:
    with _listen(port):  # free now for the coordinator that JAX will start there
        pass
    began = reminded = time.monotonic()
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(_listen(port + 1))
        ready = stack.enter_context(selectors.DefaultSelector())
        ready.register(server, selectors.EVENT_READ)
        here: dict[int, tuple[socket.socket, str]] = {}

        def dismiss(sentence: str) -> BadInput:
            for caller, _ in here.values():
                _tell(caller, sentence)
            return BadInput(sentence)

        while len(here) < location.processes - 1:
            missing = sorted(set(range(1, location.processes)) - here.keys())
            waited = time.monotonic() - began
            if waited > timeout:
                raise dismiss(
                    f"After {timeout:.0f} s {_names(missing)} of {location.processes} had not come: see "
                    f"{'its log' if len(missing) == 1 else 'their logs'}, whether {location.coordinator} can "
                    f"be reached from there on this port and the next, and whether every process was started."
                )
            if time.monotonic() - reminded > REMINDER_SECONDS:
                reminded = time.monotonic()
                say(f"Waiting for {_names(missing)} of {location.processes}, for {waited:.0f} s now.")
            for key, _ in ready.select(timeout=0.5):
                caller, address = key.fileobj.accept()  # type: ignore[union-attr]
                stack.callback(caller.close)
                caller.settimeout(5.0)
                try:
                    number, count, name = caller.makefile().readline().split()
                    place = Location(**{**vars(location), "process": int(number), "processes": int(count)})
                except (OSError, ValueError):
                    continue  # no process of ours
                if place.processes != location.processes or place.process == 0:
                    sentence = (
                        f"{name} ({address[0]}) takes itself for process {number} of {count}, but process 0 "
                        f"is here and knows of {location.processes}: start all with the same settings."
                    )
                    _tell(caller, sentence)
                    raise dismiss(sentence)
                if (other := here.get(place.process)) and _is_there(other[0]):
                    sentence = f"{other[1]} and {name} both have the number {number}: give each its own."
                    _tell(caller, sentence)
                    raise dismiss(sentence)
                here[place.process] = (caller, name)
        for caller, _ in here.values():
            _tell(caller, GO)


def _guest(location: Location, host: str, port: int, timeout: float, say: Callable[[str], None]) -> None:
    began = reminded = time.monotonic()
    while True:
        waited = time.monotonic() - began
        if waited > timeout:
            raise BadInput(
                f"Process 0 did not answer at {host}:{port} within {timeout:.0f} s: see its log, whether it "
                f"was started, and whether this host can reach that address."
            )
        try:
            with socket.create_connection((host, port), timeout=5.0) as call:
                call.sendall(f"{location.process} {location.processes} {socket.gethostname()}\n".encode())
                call.settimeout(timeout + 30)  # process 0 counts from its own start
                answer = call.makefile().readline().strip()
        except OSError:
            answer = ""  # not yet there, or gone again
        if answer == GO:
            return
        if answer:
            raise BadInput(answer)
        if time.monotonic() - reminded > REMINDER_SECONDS:
            reminded = time.monotonic()
            say(f"Waiting for process 0 at {host}:{port}, for {waited:.0f} s now.")
        time.sleep(0.2)


def _listen(port: int) -> socket.socket:
    both = socket.has_dualstack_ipv6()
    family = socket.AF_INET6 if both else socket.AF_INET
    try:
        return socket.create_server(("", port), family=family, dualstack_ipv6=both, backlog=1024)
    except OSError as error:
        raise BadInput(
            f"Process 0 cannot listen on port {port} ({error.strerror}): choose another for --coordinator."
        ) from None


def _tell(caller: socket.socket, line: str) -> None:
    with contextlib.suppress(OSError):
        caller.sendall(f"{line}\n".encode())


def _is_there(caller: socket.socket) -> bool:
    """Whether the other end is open; a process that was started anew has closed it."""
    caller.setblocking(False)
    try:
        return caller.recv(1, socket.MSG_PEEK) != b""
    except BlockingIOError:
        return True
    except OSError:
        return False


def _names(missing: Iterable[int]) -> str:
    numbers = [str(number) for number in missing]
    shown = ", ".join(numbers[:8]) + (f" and {len(numbers) - 8} more" if len(numbers) > 8 else "")
    return f"process {shown}" if len(numbers) == 1 else f"processes {shown}"
