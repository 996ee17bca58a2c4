"""With the sequence cut over devices every mechanism computes what it computes on one.

A sample of the engines runs whenever the tests do, in a process of its own with eight devices; all mechanisms
on all meshes are marked slow, and are run by hand.
"""

from __future__ import annotations

import pytest

from tests.conformance import on_shards
from transformer_jax.attention.catalogue import catalogue, find
from transformer_jax.conformance import prove, subjects
from transformer_jax.conformance.sharding import SEQUENCE_MESHES
from transformer_jax.conformance.subject import Subject

ALONE, WITH_DATA, WITH_ALL = SEQUENCE_MESHES
SAMPLE = [
    ("full", WITH_DATA),  # a ring
    ("sliding_window", ALONE),  # halos wider than a shard
    ("retention", WITH_ALL),
    ("min_gru", ALONE),
    ("short_convolution", WITH_DATA),
    ("gru", WITH_ALL),  # in turn
]
GROWS = {
    "fixed": "every token sees the summaries of all blocks, which are therefore on every device",
}
"""Why memory is not constant where the sequence is parallel."""


@pytest.mark.parametrize("name, mesh", SAMPLE, ids=[name for name, _ in SAMPLE])
def test_a_sample_computes_the_same_on_a_mesh(on_eight_devices, name, mesh):
    assert on_eight_devices(on_shards.failure, name, "causal", (mesh,)) == ""


@pytest.mark.slow
@pytest.mark.parametrize(
    "subject",
    [subject for mixer in catalogue().values() for subject in subjects(mixer)],
    ids=lambda subject: f"{subject.mixer.name}-{subject.direction}",
)
def test_every_mechanism_computes_the_same_on_every_mesh(on_eight_devices, subject):
    result = on_eight_devices(prove, subject, "sequence_changes_nothing")
    assert result.outcome == "passed", result.detail


@pytest.mark.parametrize("name", ["full", "linear", "sliding_window"])
def test_a_device_holds_no_more_of_a_longer_sequence_on_more_devices(on_eight_devices, name):
    few, many = check_memory(on_eight_devices, Subject(find(name), True, dict(find(name).small)))
    assert many.gathered == 0, f"{name} gathers arrays of {many.gathered} numbers"
    assert many.permutes > 0, f"{name} sends nothing to its neighbours"


@pytest.mark.slow
@pytest.mark.parametrize(
    "subject",
    [
        subject
        for mixer in catalogue().values()
        if mixer.capability.sequence == "parallel" and "T²" not in mixer.time
        for subject in subjects(mixer)
    ],
    ids=lambda subject: f"{subject.mixer.name}-{subject.direction}",
)
def test_so_it_is_of_each_mechanism_that_is_not_quadratic(on_eight_devices, subject, record_property):
    if subject.mixer.name in GROWS:
        pytest.skip(GROWS[subject.mixer.name])
    # A ring of two devices is one step, without a loop and what that holds: from 4 on memory is constant.
    fewest = 4 if subject.mixer.name == "strided" else 2
    few, many = check_memory(on_eight_devices, subject, fewest)
    record_property("ratio", many.temporaries / few.temporaries)
    assert many.gathered < many.streamed, f"an array of {many.gathered} numbers is gathered"


def check_memory(on_eight_devices, subject, fewest=2):
    few, many = (on_eight_devices(on_shards.program, subject, devices) for devices in (fewest, 8))
    sizes = f"{few.temporaries} bytes of temporaries on {fewest} devices, {many.temporaries} on 8"
    assert many.temporaries <= 1.1 * few.temporaries, sizes
    return few, many


@pytest.mark.parametrize("kv_heads, gathered", [(1, True), (4, False)])
def test_few_keys_are_gathered_and_many_go_round_a_ring(on_eight_devices, kv_heads, gathered):
    """With one key-value head for 16 of queries, all keys are no more than a shard's queries."""
    error, gathers, permutes = on_eight_devices(on_shards.few_keys, kv_heads)
    assert error < 1e-6
    assert (gathers > 0, permutes > 0) == (gathered, not gathered)


@pytest.mark.parametrize(
    "queries, keys, way", [(4096, 4096, "ring"), (64, 4096, "from all"), (4096, 64, "everywhere")]
)
def test_only_few_queries_are_on_all_devices(on_eight_devices, queries, keys, way):
    assert on_eight_devices(on_shards.way, queries, keys, devices=2) == way


@pytest.mark.parametrize("landmarks, per_device", [(6, 192), (8, 256)])
def test_means_of_segments_gather_no_tokens(on_eight_devices, landmarks, per_device):
    """Segments of 256 tokens, of which six lie over the borders of eight devices."""
    subject = Subject(find("nystrom"), False, {"landmarks": landmarks, "taps": 5})
    found = on_eight_devices(on_shards.program, subject, 8, per_device)
    assert found.gathered < found.streamed, f"an array of {found.gathered} numbers is gathered"


@pytest.mark.slow
@pytest.mark.parametrize("window", [3, 8])
def test_gaps_that_do_not_divide_a_shard_change_nothing(on_eight_devices, window):
    """Of a wide window every token asks for nearly all: what a halo would bring comes round the ring."""
    assert (
        on_eight_devices(
            on_shards.failure, "dilated", "bidirectional", (ALONE, WITH_DATA), window=window, dilation=5
        )
        == ""
    )


def test_a_sequence_that_does_not_divide_is_refused(on_eight_devices):
    said = on_eight_devices(on_shards.refusal, "linear", 30)
    assert said.startswith("A sequence of 30 tokens does not divide over mesh.sequence=8 devices: ")


def test_a_bonus_of_the_current_token_stays_with_its_heads(on_eight_devices):
    assert on_eight_devices(on_shards.bonus) < 1e-6
