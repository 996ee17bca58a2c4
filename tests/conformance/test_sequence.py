"""With the sequence cut over devices every mechanism computes what it computes on one.

A sample of the engines runs whenever the tests do, in a process of its own with eight devices; all mechanisms
on all meshes are marked slow, and are run by hand.
"""

from __future__ import annotations

import pytest

from tests.conformance import on_shards
from transformer_jax.attention.catalogue import catalogue
from transformer_jax.conformance import prove, subjects
from transformer_jax.conformance.sharding import SEQUENCE_MESHES

ALONE, WITH_DATA, WITH_ALL = SEQUENCE_MESHES
SAMPLE = [
    ("full", WITH_DATA),  # a ring
    ("sliding_window", ALONE),  # halos wider than a shard
    ("retention", WITH_ALL),
    ("min_gru", ALONE),
    ("short_convolution", WITH_DATA),
    ("gru", WITH_ALL),  # in turn
]
CONSTANT = ["full", "linear", "sliding_window"]
ALSO_CONSTANT = ["gated_delta_net", "mlstm", "rwkv7", "mamba", "rg_lru", "sinks_and_window"]


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


def test_a_ring_gathers_nothing_and_memory_does_not_grow_with_devices(on_eight_devices):
    check_programs(on_eight_devices, CONSTANT)


@pytest.mark.slow
def test_memory_of_other_linear_and_windowed_mechanisms_does_not_grow_with_devices(on_eight_devices):
    check_programs(on_eight_devices, ALSO_CONSTANT)


def check_programs(on_eight_devices, names):
    for name, programs in on_eight_devices(on_shards.programs, names).items():
        assert programs[8]["gathers"] == 0, f"{name} gathers streams"
        assert programs[8]["permutes"] > 0, f"{name} sends nothing to its neighbours"
        few, many = (programs[n]["temporaries"] for n in (2, 8))
        assert many <= 1.1 * few, f"{name}: {few} bytes of temporaries on 2 devices, {many} on 8"


def test_a_sequence_that_does_not_divide_is_refused(on_eight_devices):
    said = on_eight_devices(on_shards.refusal, "linear", 30)
    assert said.startswith("A sequence of 30 tokens does not divide over mesh.sequence=8 devices: ")


def test_a_bonus_of_the_current_token_stays_with_its_heads(on_eight_devices):
    assert on_eight_devices(on_shards.bonus) < 1e-6
