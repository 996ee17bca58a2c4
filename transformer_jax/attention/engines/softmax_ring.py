"""Ring attention (arXiv:2310.01889): keys and values go round the shards of a sequence, and results merge.

In n steps every shard's queries meet every shard's keys, those of the shard s before in step s, one shard of
keys at a time; parts merge by log-sum-exp. The backward pass sends keys and values round once more, and with
them their gradients, which come home at the end: memory is that of a shard.

With contiguous shards and j ≤ i the last shard would have work in every step and the first in one. So shard r
gets the pieces r and 2n − 1 − r of 2n (zig-zag): then in every step but the first it has half of its pairs to
compute, as all others have. The permutation is made here and undone here.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from transformer_jax.attention.engines.softmax import Computation, Inputs, as_cotangent, merge
from transformer_jax.attention.engines.softmax_plan import band
from transformer_jax.attention.engines.softmax_tokens import tokens_axis
from transformer_jax.parallel.sequence import AXIS, rank, rotate


def ring(computation: Computation, x: Inputs, *, causal: bool) -> tuple[jax.Array, jax.Array]:
    """o and lse of a shard's queries over the keys of all shards; causal: j ≤ i, in shards of even length."""
    if not causal:
        return rounds(computation, causal)(x)
    turned = jax.tree.map(zigzag, x._replace(shared={}))._replace(shared=x.shared)
    return jax.tree.map(contiguous, rounds(computation, causal)(turned))


def rounds(computation: Computation, causal: bool) -> Callable:
    """x → (o, lse) with its gradient; causal is for shards in zig-zag."""

    def own(x):
        """The plan of a shard with itself. Its two pieces are in order."""
        return band(x.q.shape[1], x.k.shape[1], after=0 if causal else None)

    def forward(x):
        def step(carry, by):
            done, keys = carry
            keys = rotate(keys)
            found = meet(causal, by, partial(forward_of, computation), with_keys(x, keys))
            return (merge([done, found]), keys), None

        start = computation.forward(own(x), x), (x.k, x.v, x.key)
        return lax.scan(step, start, jnp.arange(1, lax.axis_size(AXIS)))[0][0]

    def backward(saved, cotangents):
        x, results = saved[0], (*saved[1:], *cotangents)

        def step(carry, by):
            mine, others, keys = carry
            others, keys = rotate((others, keys))
            found = meet(causal, by, partial(backward_of, computation, results), with_keys(x, keys))
            mine, others = jax.tree.map(jnp.add, (mine, others), sides(found))
            return (mine, others, keys), None

        found = sides(computation.backward(own(x), x, *results))
        start = *found, (x.k, x.v, x.key)
        mine, others, _ = lax.scan(step, start, jnp.arange(1, lax.axis_size(AXIS)))[0]
        (q, query, shared), (k, v, key) = mine, rotate(others)
        return (as_cotangent(x, Inputs(q, k, v, query, key, {}, shared)),)

    def run_forward(x):
        done = forward(x)
        return done, (x, *done)

    run = jax.custom_vjp(forward)
    run.defvjp(run_forward, backward)
    return run


def meet(causal: bool, by: jax.Array, f: Callable, x: Inputs) -> Any:
    """f(x, which of the queries, which of the keys) for keys from the shard `by` before, round the ring."""
    queries, keys = x.q.shape[1], x.k.shape[1]
    if not causal:
        return f(x, slice(0, queries), slice(0, keys))
    # Of an earlier shard, its first piece is before both of ours, and its last piece after both; of a later
    # shard, both pieces are between ours.
    earlier = lambda: f(x, slice(0, queries), slice(0, keys // 2))
    later = lambda: f(x, slice(queries // 2, queries), slice(0, keys))
    return lax.cond(rank() >= by, earlier, later)


def forward_of(
    computation: Computation, x: Inputs, queries: slice, keys: slice
) -> tuple[jax.Array, jax.Array]:
    """o and lse of all queries, those that are left out seeing nothing."""
    part = some(x, queries, keys)
    o, lse = computation.forward(band(part.q.shape[1], part.k.shape[1]), part)
    return widened(o, queries, x.q), widened(lse, queries, x.q, -jnp.inf)


def backward_of(computation: Computation, results: tuple, x: Inputs, queries: slice, keys: slice) -> Inputs:
    """Gradients of the shape of x; `results` are o, lse and their gradients, over all keys."""
    part, results = some(x, queries, keys), cut(results, queries)
    d = computation.backward(band(part.q.shape[1], part.k.shape[1]), part, *results)
    q, query = jax.tree.map(lambda d: widened(d, queries, x.q), (d.q, d.query))
    k, v, key = jax.tree.map(lambda d: widened(d, keys, x.k), (d.k, d.v, d.key))
    return Inputs(q, k, v, query, key, {}, d.shared)


def sides(d: Inputs) -> tuple:
    """What stays with the queries, and what goes round with the keys."""
    return (d.q, d.query, d.shared), (d.k, d.v, d.key)


def with_keys(x: Inputs, keys: tuple) -> Inputs:
    k, v, key = keys
    return x._replace(k=k, v=v, key=key)


def some(x: Inputs, queries: slice, keys: slice) -> Inputs:
    q, query = cut((x.q, x.query), queries)
    k, v, key = cut((x.k, x.v, x.key), keys)
    return Inputs(q, k, v, query, key, {}, x.shared)


def cut(tree: Any, at: slice) -> Any:
    return jax.tree.map(lambda x: lax.slice_in_dim(x, at.start, at.stop, axis=tokens_axis(x)), tree)


def widened(x: jax.Array, at: slice, like: jax.Array, filling: float = 0) -> jax.Array:
    """x, of the tokens `at`, as of all the tokens of `like`."""
    pads = [(0, 0)] * x.ndim
    pads[tokens_axis(x)] = at.start, like.shape[1] - at.stop
    return jnp.pad(x, pads, constant_values=filling)


def zigzag(x: jax.Array) -> jax.Array:
    """A shard's tokens, pieces 2r and 2r + 1, exchanged for its pieces r and 2n − 1 − r."""
    even, odd = (lax.ppermute(x, AXIS, pairs) for x, pairs in zip(halves(x), journeys(), strict=True))
    return in_order(even, odd, tokens_axis(x))


def contiguous(x: jax.Array) -> jax.Array:
    """The inverse of `zigzag`."""
    first, last = halves(x)
    even, odd = (jnp.where(rank() % 2 == n, first, last) for n in (0, 1))
    back = [[(to, start) for start, to in pairs] for pairs in journeys()]
    both = (lax.ppermute(x, AXIS, pairs) for x, pairs in zip((even, odd), back, strict=True))
    return jnp.concatenate(list(both), tokens_axis(x))


def in_order(even: jax.Array, odd: jax.Array, axis: int) -> jax.Array:
    """The pieces of even and odd number in a shard: it begins with that of its own parity."""
    swap = rank() % 2 == 1
    return jnp.concatenate([jnp.where(swap, odd, even), jnp.where(swap, even, odd)], axis)


def halves(x: jax.Array) -> list[jax.Array]:
    return jnp.split(x, 2, axis=tokens_axis(x))


def journeys() -> list[list[tuple[int, int]]]:
    """Where each shard sends its first piece, and its second."""
    count = lax.axis_size(AXIS)
    owner = lambda piece: min(piece, 2 * count - 1 - piece)
    return [[(r, owner(2 * r + second)) for r in range(count)] for second in (0, 1)]
