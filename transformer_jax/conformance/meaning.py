"""Checks of meaning: every execution computes what the definition says."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from transformer_jax.attention.contract import Layout
from transformer_jax.attention.core import CoreMixer, Streams
from transformer_jax.attention.definition import by_definition, effective_matrix
from transformer_jax.conformance.subject import Subject, Undefined, agree, core_of, inputs, jit

# Float64 leaves about 1e-15 per operation; sums over tens of terms and an exponential or two lie well
# within these.
EXACT, GRADIENT = 1e-10, 1e-8


def definition_is_matched(subject: Subject) -> None:
    """The parallel execution equals the definition, values and gradients, at lengths that divide
    nothing, for grouped and multi-query heads."""
    for length, kv_heads, rotary in ((37, 2, 100.0), (1, 1, None)):
        mixer = core_of(subject.build(kv_heads=kv_heads, rotary=rotary))
        (o, gradient), (o_wanted, gradient_wanted) = jit(partial(_both_ways, mixer))(inputs(2, length))
        agree(o, o_wanted, within=EXACT, what=f"values at T={length}")
        agree(gradient, gradient_wanted, within=GRADIENT, what=f"gradient at T={length} of ")


def _both_ways(mixer: CoreMixer, x: jax.Array):
    """(values, gradient in the streams) of some weighted sum of them: as executed, and as defined."""
    layout = Layout.plain(*x.shape[:2])
    streams, _ = mixer.streams(x, layout)

    def differentiated(core):
        def total(some):
            o = core(streams | some)
            weights = jnp.cos(1.0 + jnp.arange(o.size, dtype=o.dtype)).reshape(o.shape)
            return jnp.sum(o * weights), o

        (_, o), gradient = jax.value_and_grad(total, has_aux=True)(_floats(streams))
        return o, gradient

    executed = differentiated(lambda s: mixer.core(s, layout, None)[0])
    return executed, differentiated(partial(by_definition, mixer))


def matrix_is_effective(subject: Subject) -> None:
    """The definition is linear in v: applied to v = I it yields the matrix that maps v to the
    output, zero above the diagonal when causal."""
    mixer = core_of(subject.build())
    if mixer.no_matrix:
        raise Undefined(mixer.no_matrix)
    length = 21

    @jit
    def both_ways(x):
        matrix = effective_matrix(mixer, x)
        streams, _ = mixer.streams(x, Layout.plain(1, length))
        product = jnp.einsum("bnts,bsnh->btnh", matrix, streams["v"])
        return matrix, product, by_definition(mixer, streams)

    matrix, product, output = both_ways(inputs(1, length))
    agree(product, output, within=EXACT, what="matrix times v")
    if subject.causal:
        by_token = np.abs(matrix).reshape(*matrix.shape[:3], length, -1).max(-1)
        assert not np.triu(by_token, 1).any(), "the matrix sees the future"


def cross_is_matched(subject: Subject) -> None:
    """With a context of another length as keys and values, the execution equals the definition."""
    subject.require("cross")
    if subject.causal:
        raise Undefined("between two sequences there is no before and after")
    mixer = core_of(subject.build())
    x, context, layout = inputs(2, 13), inputs(2, 29, seed=2), Layout.plain(2, 13)

    @jit
    def both_ways(x, context):
        streams, _ = mixer.streams(x, layout, None, context)
        o = mixer.core(streams, layout, None)[0]
        return mixer(x, layout, None, context)[0], o, by_definition(mixer, streams)

    y, o, wanted = both_ways(x, context)
    agree(o, wanted, within=EXACT, what="cross-attention")
    moved, *_ = both_ways(x, context + 1)
    change = np.abs(np.asarray(y) - np.asarray(moved)).max()
    assert y.shape == x.shape and change > 1e-6, "the context does not reach the output"


def rounding_is_bounded(subject: Subject) -> None:
    """In float32 and bfloat16 the execution stays inside the error budget of the record, against the
    float64 definition on the same streams, and gradients are finite."""
    for dtype, budget in subject.mixer.tolerance.items():
        mixer = core_of(subject.build(dtype=dtype, length=160))
        layout = Layout.plain(2, 160)
        streams, gradient = jit(partial(_streams_and_gradient, mixer, layout))(
            inputs(2, 160, dtype=jnp.dtype(dtype))
        )
        # Another program: within one the compiler may leave out the rounding of the streams.
        o, wanted = jit(partial(_rounded_and_exact, mixer, layout))(streams)
        agree(o, wanted, within=budget, what=f"values in {dtype}")
        assert np.isfinite(np.asarray(gradient, np.float32)).all(), f"the gradient in {dtype} is not finite"


def _streams_and_gradient(mixer: CoreMixer, layout: Layout, x: jax.Array) -> tuple[Streams, jax.Array]:
    """Its streams, with what it selects, and the gradient in x."""
    streams, _ = mixer.streams(x, layout)
    return streams | mixer.selection(streams, layout), jax.grad(lambda x: _total(mixer(x, layout)[0]))(x)


def _rounded_and_exact(mixer: CoreMixer, layout: Layout, streams: Streams) -> tuple[jax.Array, jax.Array]:
    """The execution in the dtype of the streams, and the definition in float64."""
    exact = streams | {name: s.astype(jnp.float64) for name, s in _floats(streams).items()}
    return mixer.core(streams, layout, None)[0], by_definition(mixer, exact)


def large_inputs_stay_finite(subject: Subject) -> None:
    """Inputs a hundred times their usual size leave float32 values and gradients finite."""
    mixer = subject.build(dtype="float32")
    x = 100 * inputs(1, 40, dtype=jnp.float32)
    layout = Layout.plain(1, 40)
    y, gradient = jit(jax.value_and_grad(lambda x: _total(mixer(x, layout)[0])))(x)
    assert np.isfinite(y) and np.isfinite(gradient).all(), "large inputs overflow"


def _floats(streams: Streams) -> Streams:
    return {name: x for name, x in streams.items() if jnp.issubdtype(x.dtype, jnp.floating)}


def _total(y: jax.Array) -> jax.Array:
    return jnp.sum(jnp.sin(y.astype(jnp.float32)))
