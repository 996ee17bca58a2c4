"""The linear recurrence on a kernel of the device, where one can honour all of it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax
from jax.sharding import PartitionSpec

from transformer_jax.kernels import recurrence as kernel
from transformer_jax.kernels.choice import Kernel, choose
from transformer_jax.parallel.mesh import current
from transformer_jax.parallel.sequence import Shards

if TYPE_CHECKING:
    from transformer_jax.attention.engines.recurrence import Steps


def run(steps: Steps, S: jax.Array) -> tuple[jax.Array, jax.Array] | None:
    """What `recurrence.run` gives, or None where the engine's own execution is to run."""
    chosen = choose((Kernel(kernel.NAME, "tpu", refusal(steps)),))
    if chosen is None:
        return None
    interpret = chosen[1]

    def own(q, k, v, log_decay, S):
        return kernel.run(q, k, v, log_decay, S, interpret=interpret)

    streams, mesh = (steps.q, steps.k, steps.v, steps.log_decay), current()
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
    if steps.b is not None:
        return "the kernel does not correct the state"
    if steps.reads != "after":
        return "the kernel reads a state after the token's own write"
    return kernel.refusal(steps.q, steps.k, steps.v, steps.log_decay)
