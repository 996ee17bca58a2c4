"""With the sequence cut over devices every mechanism computes what it computes on one.

A sample of the engines runs whenever the tests do, in a process of its own with eight devices; all mechanisms
on all meshes are marked slow, and are run by hand.
"""

from __future__ import annotations

import pytest

from tests.conformance import on_shards
from tests.eight import on_eight
from transformer_jax.attention.catalogue import catalogue

MESHES = {
    "sequence 8": {"data": 1, "sequence": 8},
    "sequence 4 · data 2": {"data": 2, "sequence": 4},
    "sequence 2 · tensor 2 · data 2": {"data": 2, "tensor": 2, "sequence": 2},
}
SAMPLE = [
    ("full", "causal", "sequence 4 · data 2"),  # a ring
    ("sliding_window", "causal", "sequence 8"),  # halos wider than a shard
    ("retention", "causal", "sequence 2 · tensor 2 · data 2"),
    ("min_gru", "causal", "sequence 8"),
    ("short_convolution", "causal", "sequence 4 · data 2"),
    ("gru", "causal", "sequence 2 · tensor 2 · data 2"),  # in turn
]
CONSTANT = ["full", "linear", "sliding_window"]
ALSO_CONSTANT = ["gated_delta_net", "mlstm", "rwkv7", "mamba", "rg_lru", "sinks_and_window"]


def test_a_sample_computes_the_same_on_a_mesh():
    cases = [(name, direction, MESHES[mesh]) for name, direction, mesh in SAMPLE]
    assert on_eight(on_shards.failures, cases) == {}


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(catalogue()))
def test_every_mechanism_computes_the_same_on_every_mesh(name):
    directions = [d for d in ("causal", "bidirectional") if catalogue()[name].capability.defined(d)]
    cases = [(name, direction, mesh) for direction in directions for mesh in MESHES.values()]
    assert on_eight(on_shards.failures, cases) == {}


def test_a_ring_gathers_nothing_and_memory_does_not_grow_with_devices():
    check_programs(CONSTANT)


@pytest.mark.slow
def test_memory_of_other_linear_and_windowed_mechanisms_does_not_grow_with_devices():
    check_programs(ALSO_CONSTANT)


def check_programs(names):
    for name, programs in on_eight(on_shards.programs, names).items():
        assert programs["8"]["gathers"] == 0, f"{name} gathers streams"
        assert programs["8"]["permutes"] > 0, f"{name} sends nothing to its neighbours"
        few, many = (programs[n]["temporaries"] for n in "28")
        assert many <= 1.1 * few, f"{name}: {few} bytes of temporaries on 2 devices, {many} on 8"


def test_a_sequence_that_does_not_divide_is_refused():
    said = on_eight(on_shards.refusal, "linear", 30)
    assert said.startswith("A sequence of 30 tokens does not divide over mesh.sequence=8 devices: ")


def test_a_bonus_of_the_current_token_stays_with_its_heads():
    assert on_eight(on_shards.bonus) < 1e-6
