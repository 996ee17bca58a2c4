"""Checks of time: what a token may see, and that a sequence may be cut, padded and packed."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from transformer_jax.attention.contract import Layout
from transformer_jax.conformance.meaning import EXACT
from transformer_jax.conformance.subject import Subject, agree, call, inputs, jit, part, run


def future_does_not_leak(subject: Subject) -> None:
    """Causal: changing a token changes nothing before it, and something at it. Bidirectional: it also
    changes something before it."""
    go = call(subject.build())
    x, layout = inputs(1, 33), Layout.plain(1, 33)
    y, _ = go(x, layout)
    for at in (7, 20, 32):
        moved, _ = go(x.at[:, at].add(3.0), layout)
        change = np.abs(np.asarray(moved - y))[0].max(-1)
        assert change[at] > 1e-6, f"token {at} does not see itself"
        if subject.causal:
            assert change[:at].max() < 1e-12, f"a change at {at} leaks into the past: {change[:at].max():.1e}"
        else:
            assert change[:at].max() > 1e-9, f"no token before {at} sees it, yet it claims both directions"


def splitting_changes_nothing(subject: Subject) -> None:
    """Prefill and steps through the state equal the whole sequence at once, wherever it is cut."""
    subject.require_decoding()
    mixer = subject.build()
    x, layout = inputs(2, 29), Layout.plain(2, 29)
    go = call(mixer)
    whole, _ = go(x, layout)
    for cuts in ((0, 29), (0, 12, 29), (0, 12, *range(13, 20), 29), tuple(range(30))):
        state, pieces = mixer.init_state(2), []
        for start, stop in zip(cuts[:-1], cuts[1:], strict=True):
            y, state = go(x[:, start:stop], part(layout, start, stop), state)
            pieces.append(y)
        agree(jnp.concatenate(pieces, 1), whole, within=EXACT, what=f"cut into {len(pieces)}")


def padding_changes_nothing(subject: Subject) -> None:
    """A row padded on the right gives its own values, no gradient reaches the padding, a row of
    nothing but padding stays finite, and decoding continues each row where it ended."""
    subject.require("padding")
    mixer = subject.build()
    lengths = np.array([26, 11, 0])
    x = inputs(3, 26)
    layout = Layout(Layout.plain(3, 26).positions, None, jnp.asarray(lengths))
    y, _ = run(mixer, x, layout)
    assert np.isfinite(y).all(), "a row of padding is not finite"
    for row, length in enumerate(lengths[:2]):
        alone, _ = run(mixer, x[row : row + 1, :length])
        agree(y[row : row + 1, :length], alone, within=EXACT, what=f"a row of {length} in 26")

    def valid_total(x):
        y, _ = mixer(x, layout)
        return jnp.sum(jnp.where(layout.valid[..., None], jnp.sin(y), 0))

    gradient = np.asarray(jit(jax.grad(valid_total))(x))
    assert np.isfinite(gradient).all(), "the gradient of a padded batch is not finite"
    assert not gradient[~np.asarray(layout.valid)].any(), "padding receives a gradient"
    if not subject.causal or not mixer.capability.defined("decoding"):
        return
    _, state = run(mixer, x, layout, mixer.init_state(3))
    more = inputs(3, 3, seed=5)
    places = jnp.asarray(lengths)[:, None] + jnp.arange(3)[None]
    continued, _ = run(mixer, more, Layout(places), state)
    # Of the same rows at once: padded as well, which is proved above.
    joined = jax.vmap(jax.lax.dynamic_update_slice, (0, 0, 0))
    starts = jnp.stack([jnp.asarray(lengths), jnp.zeros(3, int)], axis=1)
    at_once = joined(jnp.pad(x, ((0, 0), (0, 3), (0, 0))), more, starts)
    wanted, _ = run(mixer, at_once, Layout(Layout.plain(3, 29).positions, None, jnp.asarray(lengths) + 3))
    for row, length in enumerate(lengths):
        found, exact = continued[row], wanted[row, length : length + 3]
        agree(found, exact, within=EXACT, what=f"decoding after {length}")


def packing_changes_nothing(subject: Subject) -> None:
    """Documents packed into one row give what each gives alone; cut anywhere, they still do."""
    subject.require("packing")
    mixer = subject.build()
    go = call(mixer)
    sizes = (7, 14, 7)
    x = inputs(1, sum(sizes))
    segments = jnp.asarray(np.repeat([0, 1, 2], sizes), jnp.int32)[None]
    positions = jnp.concatenate([jnp.arange(size) for size in sizes])[None]
    layout = Layout(positions, segments, None)
    packed, _ = go(x, layout)
    start = 0
    for size in sizes:
        alone, _ = go(x[:, start : start + size], Layout.plain(1, size))
        agree(packed[:, start : start + size], alone, within=EXACT, what=f"a document of {size}")
        start += size

    def first_total(x):
        return jnp.sum(mixer(x, layout)[0][:, : sizes[0]])

    gradient = np.asarray(jit(jax.grad(first_total))(x))
    assert np.abs(gradient[:, sizes[0] :]).max() < 1e-12, "a gradient crosses documents"
    if not subject.causal or not mixer.capability.defined("decoding"):
        return
    for size in (7, 4):  # between documents and within one; across their borders
        state, pieces = mixer.init_state(1), []
        for begin in range(0, 28, size):
            y, state = go(x[:, begin : begin + size], part(layout, begin, begin + size), state)
            pieces.append(y)
        agree(jnp.concatenate(pieces, 1), packed, within=EXACT, what=f"packed documents, cut every {size}")
