"""Processes that agree, stop together, and do not outlive one that is lost, stuck or has failed."""

from __future__ import annotations

import signal
import time

import pytest

from tests.parallel.several import Several
from tests.parallel.worker import LOST
from transformer_jax.parallel import group
from transformer_jax.parallel.group import Judge

WORKER = "tests/parallel/worker.py"


@pytest.mark.quick
def test_silence_is_a_loss_and_standing_still_behind_the_others_is_being_stuck():
    judge = Judge(3, lost=15, stuck=60)
    for second in range(30):
        assert judge(dict.fromkeys(range(3), (second, second)), second) == (None, "")
    silent = [judge({0: (s, s), 1: (s, s), 2: (29, s)}, s)[0] for s in range(30, 46)]
    assert silent == [None] * 15 + [2]

    judge = Judge(3, lost=15, stuck=60)
    found = [judge({0: (s, 9), 1: (s, 7), 2: (s, 9)}, s)[0] for s in range(100)]
    assert found.index(1) == 61 and set(found[:61]) == {None}

    judge = Judge(2, lost=15, stuck=60)  # a compilation: nobody is to blame, and it is said once
    found = [judge({0: (s, 7), 1: (s, 7)}, s) for s in range(200)]
    assert {number for number, _ in found} == {None} and sum(bool(text) for _, text in found) == 1


@pytest.mark.quick
def test_a_process_that_never_spoke_is_lost():
    judge = Judge(2, lost=15, stuck=60)
    assert [judge({0: (s, 0)}, s)[0] for s in range(17)] == [None] * 16 + [1]


def test_with_one_process_agreeing_is_trivial():
    assert group.agreed(lambda: 7) == 7 and group.stop(None) is None and group.stop(15) == 15


def test_they_say_what_process_0_says(tmp_path):
    with Several(WORKER, 2, "agree", folder=tmp_path) as several:
        ended = several.ended()
    assert len({one.out.splitlines()[-1] for one in ended}) == 1 and "said by" in ended[0].out
    for one in ended:
        assert one.code == 2 and one.error.splitlines()[-1] == "Error: Process 0 does not like it."


def test_sigterm_to_one_stops_all_at_the_same_step(tmp_path):
    with Several(WORKER, 3, "go", folder=tmp_path) as several:
        several.until("step 10", 2)
        several.send(signal.SIGTERM, 2)
        ended = several.ended()
    assert [one.code for one in ended] == [group.PREEMPTED] * 3
    assert len({one.out.splitlines()[-1] for one in ended}) == 1 and "stopped at" in ended[0].out


@pytest.mark.parametrize("killed", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_kill_9_of_one_ends_the_others_in_time(killed, tmp_path):
    with Several(WORKER, 3, "go", folder=tmp_path) as several:
        several.until("step 10", killed)
        several.send(signal.SIGKILL, killed)
        began = time.monotonic()
        ended = several.ended()
        seconds = time.monotonic() - began
    assert ended.pop(killed).code == -signal.SIGKILL
    assert seconds < LOST + 5
    who = "Process 0, the coordinator, is lost" if killed == 0 else "Process 1 on "
    for one in ended:
        assert one.code == group.LOST
        last = [line for line in one.error.splitlines() if line.startswith("Error: ")][-1]
        assert who in last and "the same command continues from the last checkpoint" in last


@pytest.mark.parametrize("coordinator", ["is gone", "is there"])
def test_an_abort_is_the_loss_of_process_0_only_where_that_does_not_answer(coordinator, tmp_path):
    with Several(WORKER, 1, f"abort: the coordinator {coordinator}", folder=tmp_path) as several:
        [one] = several.ended()
    [said] = [line for line in one.error.splitlines() if line.startswith("Error: ")]
    if coordinator == "is gone":
        assert one.code == group.LOST and said.startswith("Error: Process 0, the coordinator, is lost")
    else:
        assert one.code == group.ABORTED and "The runtime of process 1 on " in said


@pytest.mark.slow
def test_an_abort_of_one_is_told_by_it_and_a_loss_to_the_others(tmp_path):
    with Several(WORKER, 3, "go", folder=tmp_path) as several:
        several.until("step 10", 1)
        several.send(signal.SIGABRT, 1)
        ended = several.ended()
    assert [one.code for one in ended] == [group.LOST, group.ABORTED, group.LOST], ended
    assert "The runtime of process 1 on " in ended[1].error and "Process 0" not in ended[1].error
    assert all("Process 1 on " in ended[other].error for other in (0, 2))


@pytest.mark.slow
def test_a_process_that_stands_still_is_named(tmp_path):
    with Several(WORKER, 3, "stuck", folder=tmp_path) as several:
        ended = several.ended()
    for number, one in enumerate(ended):
        assert one.code == group.LOST, (number, one.error)
        assert "Process 1 on " in one.error and "is stuck: it lives, but" in one.error


@pytest.mark.slow
def test_a_failure_of_one_ends_all_with_its_sentence(tmp_path):
    with Several(WORKER, 3, "raise", folder=tmp_path) as several:
        ended = several.ended()
    assert [one.code for one in ended] == [1, 1, 1]
    assert all("failed: RuntimeError: a fault of one" in one.error for one in ended)
    assert "Traceback" in ended[1].error
