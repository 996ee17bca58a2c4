"""The linear recurrence with no decay, or one decay per head, on a TPU: a kernel of our own in Pallas.

    S_t = d_t S_{t−1} + k_t v_tᵀ,    o_t = S_tᵀ q_t,    d_t = e^{g_t}

It must equal `transformer_jax.attention.engines.recurrence.run` without corrections. A step of the grid takes
a chunk of 256 tokens of several rows (batch · heads); chunks of a row follow one another with S in fast
memory. Blocks of 128 tokens, the edge of a matrix unit, are four products each. With G the sum of g from a
block's start, L_ts = e^{G_t − G_s} for s ≤ t, else 0, and S the state before the block,

    o = ((q kᵀ) ∘ L) v + e^G ∘ (q S),    S ← e^{G_n} S + (e^{G_n − G} ∘ k)ᵀ v.

Decays are exact where they forget: what is below e^{−30} counts as a border that nothing crosses. What
depends on g alone and not on pairs is computed outside, by XLA.

The backward pass is three more recurrences of the same kind. With ō, k̄, … the cotangents,

    q̄_t = Σ_{s≤t} (ō_t v_s) L_ts k_s,  v̄_s = Σ_{t≥s} (k_s q_t) L_ts ō_t,  k̄_s = Σ_{t≥s} (v_s ō_t) L_ts q_t,

the latter two from the last token to the first; and as only differences of G occur, Ḡ_t = q_t q̄_t − k_t k̄_t.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import partial

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

NAME = "recurrence"
BLOCK = 128
"""Tokens of a block, the edge of a matrix unit of v5e and v5p."""
CHUNK = 256
"""Tokens of a step of the grid."""
ROWS = 8
"""Rows of a step of the grid, at most: while one waits for a product the others have work."""
FAST_MEMORY = 12 * 2**20
"""Bytes that the streams and states of a step may take of the 16 MiB that the compiler gives a kernel."""
BORDER = -30.0
"""log of a decay that leaves nothing, to the precision of float32, of what is as large as what follows."""
FAR = 150.0
"""2^−150 is 0 in float32."""
LANES, SUBLANES = 128, 8
DTYPES = ("float32", "bfloat16")


def refusal(q, k, v, log_decay) -> str:
    """Why the kernel cannot take (B, T, N, H), (B, T, N, H), (B, T, N, M) and (B, T, N) or None; empty where
    it can."""
    if q.dtype.name not in DTYPES:
        return f"the kernel computes in {' or '.join(DTYPES)}, not {q.dtype.name}"
    if k.shape[1] != q.shape[1]:
        return "the kernel has one micro-step per token"
    if log_decay is not None and log_decay.ndim > 3:
        return "the kernel has one decay per head, not one per channel"
    if q.shape[-1] % SUBLANES:
        return f"the kernel wants a head size that is a multiple of {SUBLANES}"
    return ""


def run(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    log_decay: jax.Array | None,
    S: jax.Array,
    *,
    interpret: bool = False,
) -> tuple[jax.Array, jax.Array]:
    """o (B, T, N, M), in the dtype of q, and the state (B, N, H, M) after the last token, in float32.

    Args:
      q, k: (B, T, N, H). v: (B, T, N, M), rounded to the dtype of q as k is.
      log_decay: g (B, T, N), −inf to forget; None for no decay.
      S: (B, N, H, M), the state before the first token.
      interpret: by JAX, on any device.
    """
    batch, _, heads, _ = q.shape
    g = None if log_decay is None else by_row(log_decay).astype(jnp.float32)
    q, k, v = (by_row(x.astype(q.dtype)) for x in (q, k, v))
    o, last = recurrence(interpret, q, k, v, g, S.reshape(batch * heads, *S.shape[2:]).astype(jnp.float32))
    return by_head(o, heads), last.reshape(S.shape)


def by_row(x: jax.Array) -> jax.Array:
    """(B, T, N, …) → (B·N, T, …)."""
    return jnp.moveaxis(x, 2, 1).reshape(-1, x.shape[1], *x.shape[3:])


def by_head(x: jax.Array, heads: int) -> jax.Array:
    """(B·N, T, …) → (B, T, N, …)."""
    return jnp.moveaxis(x.reshape(-1, heads, *x.shape[1:]), 1, 2)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def recurrence(interpret, q, k, v, g, S):
    """o (L, T, M) and the last state (L, H, M) of L rows: q, k (L, T, H), v (L, T, M), g (L, T) or None."""
    return forward(interpret, q, k, v, g, S)


def _remembered(interpret, q, k, v, g, S):
    o, last = forward(interpret, q, k, v, g, S)
    return (o, last), (q, k, v, g, S, last)


def _backward(interpret, saved, cotangents):
    q, k, v, g, S, last = saved
    do, dlast = cotangents
    flip = lambda x: x[:, ::-1]
    q_, k_, v_, do_ = (flip(x) for x in (q, k, v, do))
    # Backwards a token reads before its own decay, and what it wrote has decayed by the next one's.
    g_ = None if g is None else flip(jnp.concatenate([g[:, 1:], jnp.zeros_like(g[:, :1])], axis=1))
    dq, _ = forward(interpret, do, v, k, g, S.swapaxes(1, 2))
    dv, dS = forward(interpret, k_, q_, do_, g_, dlast)
    dk, _ = forward(interpret, v_, do_, q_, g_, dlast.swapaxes(1, 2))
    dv, dk = flip(dv), flip(dk)
    if g is None:
        return dq, dk, dv, None, dS
    exact = lambda x: x.astype(jnp.float32)
    dG = jnp.sum(exact(q) * exact(dq), axis=-1) - jnp.sum(exact(k) * exact(dk), axis=-1)
    dG = dG.at[:, -1].add(jnp.sum(dlast * last, axis=(1, 2)))
    dg = jnp.where(g < BORDER, 0, lax.cumsum(dG, axis=1, reverse=True))
    first = jnp.where(g[:, 0] < BORDER, 0, jnp.exp(g[:, 0]))
    return dq, dk, dv, dg, first[:, None, None] * dS


recurrence.defvjp(_remembered, _backward)


def forward(interpret: bool, q, k, v, g, S) -> tuple[jax.Array, jax.Array]:
    """The kernel itself, over all rows and chunks."""
    return over_chunks(NAME, one_row, products, interpret, [q], k, v, g, S)


def over_chunks(
    name: str,
    one_row: Callable,
    products: Callable,
    interpret: bool,
    readers: list,
    k,
    v,
    g,
    S,
    *,
    most: int = ROWS,
    **decayed,
) -> tuple[jax.Array, jax.Array]:
    """A kernel of that name, of `readers` and k (L, T, H), v (L, T, M), g (L, T) or None and S (L, H, M), a
    chunk of several rows after another: what it puts out (L, T, M) and the last S.

    Args:
      one_row: (row, readers, kT, v, down, along, out, S) → phases, which write the chunk of that row.
      products: (H, M, blocks) → the multiply-adds of it.
      most: rows of a step of the grid.
      decayed: options of `decays`.
    """
    (rows, length, H), M, dtype = k.shape, v.shape[-1], k.dtype
    chunk = min(CHUNK, -(-length // BLOCK) * BLOCK)
    chunks = -(-length // chunk)
    missing = chunks * chunk - length
    wide = -M % LANES if M > LANES else 0  # whole tiles of values

    def filled(x, channels=0):
        more = ((0, 0), (0, missing), (0, channels))[: x.ndim]
        return jnp.pad(x, more) if missing or channels else x

    bytes_of_token = ((len(readers) + 1) * H + 2 * (M + wide)) * dtype.itemsize
    of_row = chunk * bytes_of_token + 4 * H * (M + wide)
    together = rows_together(rows, of_row, most)
    streams = [*map(filled, readers), filled(k).swapaxes(1, 2), filled(v, wide)]
    time, state = lambda r, c: (r, c, 0), lambda r, c: (r, 0, 0)
    of_values = pl.BlockSpec((together, chunk, M + wide), time)
    of_state = pl.BlockSpec((together, H, M + wide), state)
    specs = [
        *(pl.BlockSpec((together, chunk, H), time) for _ in readers),
        pl.BlockSpec((together, H, chunk), lambda r, c: (r, 0, c)),
        of_values,
    ]
    if g is not None:
        down, along = decays(filled(g).reshape(rows, chunks, -1, BLOCK), **decayed)
        streams += [down, along]
        place = lambda r, c: (r, c, 0, 0)
        specs += [pl.BlockSpec((together, None, *x.shape[2:]), place) for x in (down, along)]
    o, last = pl.pallas_call(
        partial(kernel, one_row=one_row, readers=len(readers), decayed=g is not None),
        grid=(rows // together, chunks),
        in_specs=[*specs, pl.BlockSpec(memory_space=pl.ANY)],
        out_specs=[of_values, of_state],
        out_shape=[
            jax.ShapeDtypeStruct((rows, chunks * chunk, M + wide), dtype),
            jax.ShapeDtypeStruct((rows, H, M + wide), jnp.float32),
        ],
        scratch_shapes=[pltpu.SemaphoreType.DMA],
        compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel", "arbitrary")),
        cost_estimate=pl.CostEstimate(  # for the compiler's schedule, and the planner
            flops=2 * rows * chunks * products(H, M + wide, chunk // BLOCK),
            transcendentals=rows * chunks * chunk * (BLOCK + 1),
            bytes_accessed=rows * chunks * chunk * bytes_of_token,
        ),
        interpret=interpret,
        name=name,
    )(*streams, jnp.pad(S, ((0, 0), (0, 0), (0, wide))))
    return o[:, :length, :M], last[..., :M]


def rows_together(rows: int, row: int, most: int = ROWS) -> int:
    """How many of `rows` a step of the grid takes, `most` at most, where one has so many bytes in streams and
    state, all of them twice: while one step computes, the next one's arrive."""
    most = min(most, max(1, FAST_MEMORY // (2 * row)))
    return max(n for n in range(1, most + 1) if rows % n == 0)


def decays(g: jax.Array, *, before: bool = False) -> tuple[jax.Array, jax.Array]:
    """What blocks need of g (L, chunks, blocks, 128), in the layouts in which they need it.

    Here log L_ts = G_t − G_s is in powers of two, and every border lowers G by `FAR`, so that 2^(G_t − G_s)
    is 0 across one. With many of them in a block that costs precision: with c, 2^−17 c of L.

    Returns:
      down (L, chunks, 8, 128): G; token 8 i + j of the chunk at [j, i], from where a column spreads over the
        lanes. With `before` as many columns more follow: G of the token before, 0 at the start of a block.
      along (L, chunks, 3 · blocks, 128): of each block G; then of each what is left of its keys behind it;
        then of each what it leaves of the state, in every lane.
    """
    border = g < BORDER
    G = jnp.cumsum(jnp.where(border, 0, g), axis=-1)
    borders = jnp.cumsum(border.astype(G.dtype), axis=-1)
    left = jnp.where(borders == borders[..., -1:], jnp.exp(G[..., -1:] - G), 0)
    whole = jnp.where(borders[..., -1:] == 0, jnp.exp(G[..., -1:]), 0)
    G = G * math.log2(math.e) - FAR * borders
    down = jnp.concatenate([G, jnp.pad(G, ((0, 0),) * 3 + ((1, 0),))[..., :-1]], axis=2) if before else G
    down = down.reshape(*G.shape[:2], -1, SUBLANES).swapaxes(2, 3)
    down = jnp.pad(down, ((0, 0), (0, 0), (0, 0), (0, LANES - down.shape[-1])))
    return down, jnp.concatenate([G, left, jnp.broadcast_to(whole, G.shape)], axis=2)


def kernel(*refs, one_row: Callable, readers: int, decayed: bool):
    """One step of the grid: several rows, a chunk of each."""
    kT, v = refs[readers : readers + 2]
    down, along = refs[readers + 2 : readers + 4] if decayed else (None, None)
    first, o, S, arrived = refs[-4:]
    together = v.shape[0]
    mine = pl.ds(pl.program_id(0) * together, together)

    @pl.when(pl.program_id(1) == 0)  # the block of the last state stays, for all chunks of its rows
    def _():
        copy = pltpu.make_async_copy(first.at[mine], S, arrived)
        copy.start()
        copy.wait()

    rows = [one_row(row, refs[:readers], kT, v, down, along, o, S) for row in range(together)]
    # The compiler keeps to the order of the program: each row is a phase behind the next, so that whatever
    # unit one of them needs, others need another.
    begun = 0
    while rows:
        begun = min(begun + 1, len(rows))
        rows[:begun] = [row for row in rows[:begun] if next(row, "done") != "done"]


def product_of(dtype) -> Callable:
    """x y of matrices of that dtype, to the precision of float32 where it is that."""
    precision = lax.Precision.HIGHEST if dtype == jnp.float32 else lax.Precision.DEFAULT
    return partial(jnp.dot, preferred_element_type=jnp.float32, precision=precision)


def tokens_of(blocks: int) -> list[slice]:
    return [slice(i * BLOCK, (i + 1) * BLOCK) for i in range(blocks)]


def spread(down, row: int, block: int) -> jax.Array:
    """(128, 128): what `down` has of that block's tokens, the same in every lane."""
    tiles = BLOCK // SUBLANES
    lane = lambda i: down[row, :, block * tiles + i : block * tiles + i + 1]
    return jnp.concatenate([jnp.broadcast_to(lane(i), (SUBLANES, LANES)) for i in range(tiles)], axis=0)


def over_values(x: jax.Array, M: int) -> jax.Array:
    """(…, M) of (…, 128) that is the same in every lane."""
    return x[:, :M] if M <= LANES else jnp.concatenate([x] * (M // LANES), axis=1)


def one_row(row: int, readers, kT, v, down, along, o, S) -> Iterator[None]:
    """The chunk of one row, in phases."""
    [q] = readers
    dtype, blocks, M = q.dtype, q.shape[1] // BLOCK, v.shape[-1]
    dot, tokens = product_of(dtype), tokens_of(blocks)
    t, s = (lax.broadcasted_iota(jnp.int32, (BLOCK, BLOCK), axis) for axis in (0, 1))
    seen = s <= t

    def along_lanes(kind: int, i: int):
        return along[row, kind * blocks + i : kind * blocks + i + 1, :]

    A = [dot(q[row, at], kT[row, :, at]) for at in tokens]
    if down is not None:
        G = [spread(down, row, i) for i in range(blocks)]
    yield
    states = [S[row]]
    for i, at in enumerate(tokens):
        before, keys = states[-1], kT[row, :, at]
        if along is not None:
            keys = (keys.astype(jnp.float32) * along_lanes(1, i)).astype(dtype)
            before = before * over_values(along_lanes(2, i), M)
        states.append(before + dot(keys, v[row, at]))
    for i in range(blocks):
        if down is None:
            A[i] = jnp.where(seen, A[i], 0).astype(dtype)
        else:
            L = jnp.exp2(jnp.where(seen, G[i] - along_lanes(0, i), -jnp.inf))
            A[i] = (A[i] * L).astype(dtype)
        yield
    for i, at in enumerate(tokens):
        carried = dot(q[row, at], states[i].astype(dtype))
        if down is not None:
            carried = carried * over_values(jnp.exp2(G[i]), M)
        o[row, at] = (dot(A[i], v[row, at]) + carried).astype(o.dtype)
        yield
    S[row] = states[-1]


def products(H: int, M: int, blocks: int) -> int:
    """Multiply-adds of a chunk of so many blocks of one row."""
    return blocks * (BLOCK * BLOCK * (H + M) + 2 * BLOCK * H * M)
