"""Rounding does not add up: 65,536 tokens in float32 against the same execution in float64.

That execution, in float64, equals the definition and the steps (`definition_is_matched`,
`splitting_changes_nothing`); here only its accuracy is asked for, at a length that neither reaches. Of
mechanisms with T² work it is that of a step that reads a cache of so many tokens. Left out are those in
`EXCEPT`.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from transformer_jax.attention.catalogue import catalogue
from transformer_jax.attention.contract import Layout
from transformer_jax.attention.core import CoreMixer
from transformer_jax.conformance import subjects
from transformer_jax.conformance.subject import Subject, agree, inputs, jit, part, plain

LENGTH = 65_536
EXCEPT = {
    "block_sparse": "its pattern is given for the length of the other checks",
    # Their normalizers may come near 0, and among so many rows some do: those are a thousand times as large
    # as the median and have the error, 1e-3 and 2e-2 of the whole.
    "rfa_gated": "its normalizer comes near 0",
    "performer_trigonometric": "its normalizer comes near 0",
    "synthesizer_random": "its weights have T² numbers",
    "top_k": "it may keep other keys in float32",
}
SUBJECTS = [
    subject
    for mixer in catalogue().values()
    if mixer.name not in EXCEPT and "T²" not in mixer.time and issubclass(mixer, CoreMixer)
    for subject in subjects(mixer)[:1]
]


@pytest.mark.slow
@pytest.mark.parametrize("subject", SUBJECTS, ids=lambda s: f"{s.mixer.name}-{s.direction}")
def test_rounding_stays_bounded_over_many_tokens(subject):
    with jax.enable_x64(True):
        layout, x = Layout.plain(1, LENGTH), inputs(1, LENGTH, 8)
        results = []
        for dtype in ("float32", "float64"):
            mixer = subject.build(dtype=dtype, length=LENGTH, width=8, heads=1, head_size=4)
            if not results:
                streams, _ = jit(lambda x, mixer=mixer: mixer.streams(x, layout))(x.astype(dtype))
                streams |= mixer.selection(streams, layout)
            given = {
                name: s.astype(dtype) if jnp.issubdtype(s.dtype, jnp.floating) else s
                for name, s in streams.items()
            }
            o, _ = jit(lambda s, mixer=mixer: mixer.core(s, layout, None))(given)
            results.append(o)
        agree(*results, within=subject.mixer.tolerance["float32"], what="values over 65,536 tokens")


QUADRATIC = [
    mixer
    for mixer in catalogue().values()
    if mixer.name not in EXCEPT and "T²" in mixer.time and mixer.capability.defined("decoding")
]


@pytest.mark.slow
@pytest.mark.parametrize("mixer", QUADRATIC, ids=lambda mixer: mixer.name)
def test_rounding_stays_bounded_in_a_step_on_a_long_cache(mixer):
    subject = Subject(mixer, True, dict(mixer.small))
    with jax.enable_x64(True):
        layout, x = plain(1, LENGTH), inputs(1, LENGTH, 8)
        steps = []
        for dtype in ("float32", "float64"):
            built = subject.build(dtype=dtype, length=LENGTH, width=8, heads=1, head_size=8)

            # Nothing asks for the outputs of the prompt, and so no T² work is done for them.
            @jit
            def filled(x, built=built):
                return built(x, part(layout, 0, LENGTH - 1), built.init_state(1))[1]

            @jit
            def step(x, state, built=built):
                return built(x, part(layout, LENGTH - 1, LENGTH), state)[0]

            given = x.astype(dtype)
            steps.append(np.asarray(step(given[:, -1:], filled(given[:, :-1]))))
        agree(*steps, within=mixer.tolerance["float32"], what="a step after 65,535 tokens")
