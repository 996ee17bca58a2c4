"""The suite itself: a mechanism broken in one way fails the check that is there for it."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from transformer_jax.attention.contract import Capability
from transformer_jax.attention.heads import HeadMixer
from transformer_jax.conformance import CHECKS, prove, training
from transformer_jax.conformance.subject import Subject, agree
from transformer_jax.parallel.mesh import current


class Dense(HeadMixer):
    """Softmax attention written out: correct, slow, and no more than causal or bidirectional."""

    time = "T²"
    state = "T"
    capability = Capability(
        refused=dict.fromkeys(("cross", "packing", "decoding", "padding"), "the example does not")
    )

    def definition(self, q, k, v):
        scores = q @ k.T / self.geometry.head_size**0.5
        if self.geometry.causal:
            scores = jnp.where(jnp.tril(jnp.ones(scores.shape, bool)), scores, -jnp.inf)
        return jax.nn.softmax(scores) @ v

    def core(self, streams, layout, state):
        k, v = (jnp.repeat(streams[n], self.geometry.heads // streams[n].shape[2], 2) for n in "kv")
        per_head = jax.vmap(jax.vmap(self.definition, 1, 1))
        return per_head(streams["q"], k, v), {}

    def core_flops(self, batch, length):
        return 4 * batch * length * length * self.geometry.heads * self.geometry.head_size


class WrongScale(Dense):
    def core(self, streams, layout, state):
        return super().core(streams | {"q": 1.001 * streams["q"]}, layout, state)


class LeaksTheFuture(Dense):
    def definition(self, q, k, v):
        return super().definition(q, k, v) + 1e-3 * v.mean(0)


class NotLinearInValues(Dense):
    def definition(self, q, k, v):
        return super().definition(q, k, jnp.sin(v))


class HidesADenseMask(Dense):
    time = "T"


class UnderstatesWork(Dense):
    def core_flops(self, batch, length):
        return super().core_flops(batch, length) // 2


class RefusesInSilence(Dense):
    def admit(self, layout, state, context):
        pass


class Overflows(Dense):
    def definition(self, q, k, v):
        return super().definition(q, k, v) * (1 + 0 * jnp.exp(q).sum())


class Rounds(Dense):
    def core(self, streams, layout, state):
        half = {name: s.astype(jnp.float16) for name, s in streams.items()}
        return super().core(half, layout, state)


class WrongOnAMesh(Dense):
    def core(self, streams, layout, state):
        o, state = super().core(streams, layout, state)
        return (o if current() is None else 1.0001 * o), state


BROKEN = {
    WrongScale: "definition_is_matched",
    LeaksTheFuture: "future_does_not_leak",
    NotLinearInValues: "matrix_is_effective",
    HidesADenseMask: "memory_is_not_quadratic",
    UnderstatesWork: "flops_are_stated",
    RefusesInSilence: "undefined_is_refused",
    Overflows: "large_inputs_stay_finite",
    Rounds: "rounding_is_bounded",
}


@pytest.mark.parametrize("mixer", BROKEN, ids=lambda m: m.__name__)
def test_a_broken_mechanism_fails_its_check(mixer):
    result = prove(Subject(mixer, causal=True), BROKEN[mixer])
    assert result.outcome == "failed" and result.detail, result


def test_a_mechanism_that_is_wrong_on_a_mesh_fails_there(on_eight_devices):
    for mixer, outcome in ((Dense, "passed"), (WrongOnAMesh, "failed")):
        result = on_eight_devices(prove, Subject(mixer, causal=True), "sharding_changes_nothing")
        assert result.outcome == outcome, result.detail
    assert "values on data 2 × fsdp 2 × tensor 2" in result.detail


def test_rounding_where_a_part_is_zero_is_not_an_error_and_a_small_error_is():
    whole = {"k": np.zeros(3), "v": np.full(3, 1.0)}
    agree({"k": np.full(3, 1e-13), "v": whole["v"]}, whole, within=1e-8, what="gradient ")
    for part, error in (("k", 1e-11), ("v", 1e-7)):
        with pytest.raises(AssertionError, match="exceeds"):
            agree(whole | {part: whole[part] + error}, whole, within=1e-8, what="gradient ")


@pytest.mark.parametrize("name", [name for name in CHECKS if CHECKS[name].__module__ != training.__name__])
def test_a_correct_mechanism_passes(name):
    """Those that build a model find the mechanism by name, and are proved on the catalogue."""
    result = prove(Subject(Dense, causal=True), name)
    assert result.outcome in ("passed", "undefined"), result.detail
