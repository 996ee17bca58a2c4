"""Nobody starts before all are there; who is missing, or is there twice, is named."""

from __future__ import annotations

import threading

import pytest

from tests.parallel.several import free_ports
from transformer_jax.errors import BadInput
from transformer_jax.parallel import roll_call
from transformer_jax.parallel.processes import Location

pytestmark = pytest.mark.quick


@pytest.fixture(autouse=True)
def often(monkeypatch):
    monkeypatch.setattr(roll_call, "REMINDER_SECONDS", 0.3)


def call(numbers, processes, *, timeout, port=None, counts=None):
    """What each of `numbers` heard: None where it may start, else the sentence; and what it was told."""
    port, heard, told = port or free_ports(), {}, {}

    def one(place, number):
        there = Location(
            source="flags",
            coordinator=f"127.0.0.1:{port}",
            processes=(counts or {}).get(place, processes),
            process=number,
        )
        told[place] = []
        try:
            heard[place] = roll_call.roll_call(there, timeout=timeout, say=told[place].append)
        except BadInput as error:
            heard[place] = str(error)

    threads = [threading.Thread(target=one, args=pair) for pair in enumerate(numbers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return heard, told


def test_all_start_together():
    heard, _ = call([2, 0, 3, 1], 4, timeout=20)
    assert heard == dict.fromkeys(range(4))


def test_who_is_missing_is_named_while_waiting_and_at_the_end():
    heard, told = call([0, 2], 4, timeout=1.2)
    assert "After 1 s processes 1, 3 of 4 had not come" in heard[0] and heard[1] == heard[0]
    assert any("Waiting for processes 1, 3 of 4" in line for line in told[0])


def test_a_process_0_that_never_came_is_named():
    heard, told = call([1], 2, timeout=1.0)
    assert "Process 0 did not answer at 127.0.0.1:" in heard[0] and "Waiting for process 0" in told[0][0]


def test_a_number_given_twice_and_a_count_that_differs_are_contradictions():
    heard, _ = call([0, 1, 1], 3, timeout=5)
    assert all("both have the number 1: give each its own" in heard[place] for place in (0, 1, 2))
    heard, _ = call([0, 1], 3, timeout=5, counts={1: 2})
    assert "takes itself for process 1 of 2, but process 0 is here and knows of 3" in heard[1]


def test_a_port_that_is_taken_is_named():
    import socket

    with socket.create_server(("", 0)) as taken:
        heard, _ = call([0], 2, timeout=1, port=taken.getsockname()[1])
    assert "Process 0 cannot listen on port" in heard[0] and "--coordinator" in heard[0]
