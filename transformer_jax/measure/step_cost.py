"""What a training step costs, read from the program that trained."""

from __future__ import annotations

from typing import Any

import jax
from jax.stages import Wrapped

from transformer_jax.errors import BadInput
from transformer_jax.measure.flops import trip_flops


def step_cost(steps: Wrapped, *args: Any) -> dict[str, int | None]:
    """The cost of one training step, as a run records it.

    With arguments of a call that was made nothing is compiled again: JAX finds the program that it has.

    Args:
      steps: the jitted loop over training steps, as of `train.step.Program`.
      args: of a call of it; nothing is computed.

    Returns:
      flops: matrix products of one step over all devices, forward and backward, recomputation included;
        None where they cannot be counted.
      temporaries: bytes that the program holds on a device beside its arguments and results.
      peak_memory: bytes that were held on a device at most until now; None where it does not say (a CPU).
    """
    traced = steps.trace(*args)
    try:
        flops = trip_flops(traced.jaxpr.jaxpr)
    except BadInput:
        flops = None
    temporaries = traced.lower().compile().memory_analysis().temp_size_in_bytes
    peak = (jax.local_devices()[0].memory_stats() or {}).get("peak_bytes_in_use")
    return {"flops": flops, "temporaries": temporaries, "peak_memory": peak}
