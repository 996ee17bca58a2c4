"""Checks of cost: what the record states is what the program has."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx

from transformer_jax.attention import moved
from transformer_jax.attention.contract import MODES, Layout
from transformer_jax.conformance.subject import Subject, Undefined, inputs, jit
from transformer_jax.errors import BadInput
from transformer_jax.measure.flops import count_flops
from transformer_jax.measure.program import largest_array


def flops_are_stated(subject: Subject) -> None:
    """`flops(batch, length)` equals the matrix products in the jaxpr, loops counted with their trips."""
    for batch, length, kv_heads in ((2, 48, 4), (1, 31, 2), (1, 272, 2)):  # the last in rows that are padded
        mixer = subject.build(dtype="float32", kv_heads=kv_heads, length=max(length, 48))
        layout = Layout.plain(batch, length)
        counted = count_flops(
            lambda x, mixer=mixer, layout=layout: mixer(x, layout)[0],
            inputs(batch, length, dtype=jnp.float32),
        )
        stated = mixer.flops(batch, length)
        assert stated == counted, (
            f"states {stated} FLOPs for {batch}×{length} tokens, the program has {counted}: its "
            f"projection_flops and core_flops are {abs(counted - stated)} too "
            f"{'low' if stated < counted else 'high'}"
        )


def state_is_stated(subject: Subject) -> None:
    """The decode state grows with the model's length exactly where the record says that it does."""
    subject.require_decoding()
    sizes = []
    for length in (64, 128):
        state = jax.eval_shape(
            lambda length=length: subject.build(dtype="float32", length=length).init_state(1)
        )
        sizes.append(sum(leaf.size for leaf in jax.tree.leaves(state) if jnp.issubdtype(leaf, jnp.floating)))
    grows = sizes[1] > sizes[0]
    assert grows == ("T" in subject.mixer.state), (
        f"states a decode state of {subject.mixer.state!r}, which goes from {sizes[0]} to {sizes[1]} numbers "
        f"when the length doubles"
    )


def bytes_are_stated(subject: Subject) -> None:
    """A compiled decoding step is given what `decode_bytes` says that it reads, and replaces in place as many
    bytes as it says that the state has; a compiled forward pass hands over what `kept_bytes` says."""
    batch, length = 2, 48
    graph, values = nnx.split(subject.build(dtype="float32", length=length))
    kept = moved.kept_bytes(graph, values, batch, length)
    forward = moved.residuals(graph, values, batch, length)
    program = jit(forward).lower(values, moved.inputs(graph, values, batch, length)).compile()
    arrays = len(jax.tree.leaves(program.out_info))
    found = program.memory_analysis().output_size_in_bytes
    # A result of several arrays has a pointer to each.
    assert 0 <= found - kept <= 8 * arrays, f"states {kept} bytes kept, the program hands over {found}"
    subject.require_decoding()
    step = moved.decode_bytes(graph, values, batch)
    state = jax.eval_shape(lambda values: nnx.merge(graph, values).init_state(batch), values)
    token = moved.token(graph, values, batch)
    donating = jit(moved.step(graph), donate_argnums=3)
    memory = donating.lower(values, *token, state).compile().memory_analysis()
    assert memory.argument_size_in_bytes == step.read, (
        f"states {step.read} bytes read, the program is given {memory.argument_size_in_bytes}"
    )
    assert memory.alias_size_in_bytes == step.state, (
        f"states a state of {step.state} bytes, the program replaces {memory.alias_size_in_bytes}"
    )


def memory_is_not_quadratic(subject: Subject) -> None:
    """Where the record states less than T² work, no array of the compiled forward and backward
    program has T² elements."""
    if "T²" in subject.mixer.time:
        raise Undefined(f"its work is stated as {subject.mixer.time}")
    length = 4096
    mixer = subject.build(dtype="float32", heads=1, width=8, length=length)
    layout = Layout.plain(1, length)

    def step(x):
        return jax.grad(lambda x: jnp.sum(mixer(x, layout)[0] ** 2))(x)

    largest = largest_array(jit(step), jax.ShapeDtypeStruct((1, length, 8), jnp.float32))
    assert largest < length**2, f"an array of {largest} elements at T={length}, where T² is {length**2}"


def undefined_is_refused(subject: Subject) -> None:
    """Every mode that the record refuses raises BadInput with the record's own reason."""
    mixer = subject.build(dtype="float32")
    layout = Layout.plain(2, 8)
    x = inputs(2, 8, dtype=jnp.float32)
    zeros = jnp.zeros((2, 8), jnp.int32)
    attempts = {
        "cross": lambda: mixer(x, layout, None, x),
        "padding": lambda: mixer(x, Layout(layout.positions, None, jnp.array([8, 4]))),
        "packing": lambda: mixer(x, Layout(layout.positions, zeros)),
        "decoding": lambda: mixer(x, layout, mixer.init_state(2)),
        "causal": lambda: Subject(subject.mixer, True, subject.options).build(),
        "bidirectional": lambda: Subject(subject.mixer, False, subject.options).build(),
    }
    for mode in MODES:
        if subject.mixer.capability.defined(mode):
            continue
        try:
            attempts[mode]()
        except BadInput as refusal:
            assert subject.mixer.capability.refused[mode] in str(refusal), (
                f"{mode} is refused without the reason"
            )
        else:
            raise AssertionError(f"{mode} is undefined, yet it runs")
