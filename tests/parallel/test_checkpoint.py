"""A checkpoint that one process cannot believe is damaged for all: they set it aside and go on together."""

from __future__ import annotations

from tests.parallel.several import Several

KINDS = ("rows", "copy", "record")


def test_damage_that_one_process_sees_sends_all_to_the_step_before(tmp_path):
    out = tmp_path / "checkpoints"
    worker = "tests/parallel/checkpoint_worker.py"
    with Several(worker, 2, out, ",".join(KINDS), folder=tmp_path / "log") as processes:
        ended = processes.ended()
    assert [one.code for one in ended] == [0, 0], ended
    for number, one in enumerate(ended):
        for kind in KINDS:
            assert f"{kind}: step 1, sound" in one.out, (number, one)
    assert ended[0].out.count("It is set aside as 2.damaged; that of step 1 is tried.") == 3
    assert all({path.name for path in (out / kind).iterdir()} == {"1", "2.damaged"} for kind in KINDS)
