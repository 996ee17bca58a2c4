"""The linear recurrence on a kernel of the device, where one can honour all of it."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import jax
from jax.sharding import PartitionSpec

from transformer_jax.kernels import delta
from transformer_jax.kernels import recurrence as plain
from transformer_jax.kernels.choice import Kernel, choose
from transformer_jax.parallel.mesh import current
from transformer_jax.parallel.sequence import Shards

if TYPE_CHECKING:
    from transformer_jax.attention.engines.recurrence import Steps


def run(steps: Steps, S: jax.Array) -> tuple[jax.Array, jax.Array] | None:
    """What `recurrence.run` gives, or None where the engine's own execution is to run."""
    kernel = plain if steps.b is None else delta
    chosen = choose((Kernel(kernel.NAME, "tpu", refusal(steps)),))
    if chosen is None:
        return None
    corrected = () if steps.b is None else (steps.a, steps.b)
    streams, mesh = (steps.q, steps.k, steps.v, steps.log_decay, *corrected), current()
    own = partial(kernel.run, interpret=chosen[1])
    if mesh is None or mesh.size == 1:
        o, S = own(*streams, S)
    else:  # the compiler cannot cut a kernel by itself
        shards = Shards.of(len(S), S.shape[1])
        state = PartitionSpec(shards.batch, shards.heads)
        where = ((x, shards.streams(x)) for x in streams)
        o, S = shards.run(own, *where, (S, state), out=(shards.streams(steps.v), state))
    return o.astype(steps.dtype), S.astype(steps.dtype)


def refusal(steps: Steps) -> str:
    """Why the kernel cannot; empty where it can."""
    if steps.reads != "after":
        return "the kernel reads a state after the token's own write"
    if steps.b is None:
        return plain.refusal(steps.q, steps.k, steps.v, steps.log_decay)
    return delta.refusal(steps.q, steps.k, steps.v, steps.log_decay, steps.a)
