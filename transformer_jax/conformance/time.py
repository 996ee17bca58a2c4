"""Checks of time: what a token may see, and that a sequence may be cut, padded and packed."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from transformer_jax.attention.contract import Layout, Mixer
from transformer_jax.conformance.meaning import EXACT
from transformer_jax.conformance.subject import Subject, agree, call, inputs, jit, part, plain


def future_does_not_leak(subject: Subject) -> None:
    """Causal: changing a token changes nothing before it, and something at it. Bidirectional: it also
    changes something before it."""
    go = call(subject.build())
    x, layout = inputs(1, 33), plain(1, 33)
    y, _ = go(x, layout)
    for at in (7, 20, 32):
        moved, _ = go(x + 3.0 * (np.arange(33) == at)[:, None], layout)
        change = np.abs(np.asarray(moved) - np.asarray(y))[0].max(-1)
        assert change[at] > 1e-6, f"token {at} does not see itself"
        if subject.causal:
            assert change[:at].max() < 1e-12, f"a change at {at} leaks into the past: {change[:at].max():.1e}"
        else:
            assert change[:at].max() > 1e-9, f"no token before {at} sees it, yet it claims both directions"


def splitting_changes_nothing(subject: Subject) -> None:
    """Prefill and steps through the state equal the whole sequence at once, wherever it is cut."""
    subject.require_decoding()
    mixer = subject.build()
    x, layout = inputs(2, 29), plain(2, 29)
    go = call(mixer)
    whole, _ = go(x, layout)
    # All of it; a prompt, a longer piece on its state and steps; steps between two pieces; only steps.
    for pieces in ((29,), (12, 12, *[1] * 5), (12, *[1] * 5, 12), (1,) * 29):
        found = _in_pieces(go, x, layout, mixer.init_state(2), pieces)
        agree(found, whole, within=EXACT, what=f"cut into {len(pieces)}")


def _in_pieces(go, x, layout: Layout, state, sizes) -> np.ndarray:
    """y (B, T, D) of `go` on one piece after another."""
    ys, start = [], 0
    for size in sizes:
        y, state = go(x[:, start : start + size], part(layout, start, start + size), state)
        ys.append(y)
        start += size
    return np.concatenate(ys, 1)


def padding_changes_nothing(subject: Subject) -> None:
    """A row padded on the right gives its own values, no gradient reaches the padding, a row of
    nothing but padding stays finite, and decoding continues each row where it ended."""
    subject.require("padding")
    mixer = subject.build()
    go, with_gradient = call(mixer), _and_gradient(mixer)
    lengths: Any = np.array([23, 11, 0], np.int32)
    x = inputs(3, 26)
    layout = Layout(plain(3, 26).positions, None, lengths)
    valid = np.arange(26) < lengths[:, None]
    y, gradient = with_gradient(x, layout, valid)
    assert np.isfinite(y).all(), "a row of padding is not finite"
    for row, length in enumerate(lengths[:2]):
        alone, _ = go(x[row : row + 1, :length], plain(1, length))
        agree(y[row : row + 1, :length], alone, within=EXACT, what=f"a row of {length} in 26")
    assert np.isfinite(gradient).all(), "the gradient of a padded batch is not finite"
    assert not gradient[~valid].any(), "padding receives a gradient"
    if not subject.causal or not mixer.capability.defined("decoding"):
        return
    _, state = go(x, layout, mixer.init_state(3))
    more = inputs(3, 3, seed=5)
    continued, _ = go(more, Layout(lengths[:, None] + plain(3, 3).positions), state)
    # Of the same rows at once: padded as well, which is proved above.
    at_once = x.copy()
    for row, length in enumerate(lengths):
        at_once[row, length : length + 3] = more[row]
    wanted, _ = with_gradient(at_once, Layout(layout.positions, None, lengths + 3), valid)
    for row, length in enumerate(lengths):
        found, exact = continued[row], wanted[row, length : length + 3]
        agree(found, exact, within=EXACT, what=f"decoding after {length}")


def _and_gradient(mixer: Mixer):
    """(x, layout, counted) → y, and the gradient in x of what is `counted` (B, T) of it, as one program."""
    graph, values = nnx.split(mixer)

    @jit
    def go(values, x, layout, counted):
        def total(x):
            y, _ = nnx.merge(graph, values)(x, layout)
            return jnp.sum(jnp.where(counted[..., None], jnp.sin(y), 0)), y

        gradient, y = jax.grad(total, has_aux=True)(x)
        return y, gradient

    return lambda *inputs: jax.tree.map(np.asarray, go(values, *inputs))


def packing_changes_nothing(subject: Subject) -> None:
    """Documents packed into one row give what each gives alone; cut anywhere, they still do."""
    subject.require("packing")
    mixer = subject.build()
    go = call(mixer)
    sizes = (10, 10, 8)
    x = inputs(1, sum(sizes))
    segments: Any = np.repeat(np.arange(3, dtype=np.int32), sizes)[None]
    positions: Any = np.concatenate([np.arange(size, dtype=np.int32) for size in sizes])[None]
    layout = Layout(positions, segments, None)
    packed, gradient = _and_gradient(mixer)(x, layout, segments == 0)
    start = 0
    for size in sizes:
        alone, _ = go(x[:, start : start + size], plain(1, size))
        agree(packed[:, start : start + size], alone, within=EXACT, what=f"a document of {size}")
        start += size
    assert np.abs(gradient[:, sizes[0] :]).max() < 1e-12, "a gradient crosses documents"
    if not subject.causal or not mixer.capability.defined("decoding"):
        return
    # Fours: the first document ends within a piece, the second between two.
    found = _in_pieces(go, x, layout, mixer.init_state(1), (4,) * 7)
    agree(found, packed, within=EXACT, what="packed documents, cut every 4")
