"""The model of a step's time. It is uncalibrated: nothing here was fitted to a measurement.

    step = max(compute + kernels, hidden) + exposed

compute: the compiler's estimated cycles of everything but collectives and kernels, loops with their turns,
  at the chip's clock.
kernels: of those written by hand the longer of their FLOPs at the chip's peak and their bytes at the
  bandwidth of the HBM; their FLOPs as their authors declare them, or those of the engine's own execution.
hidden, exposed: collectives that run while the program computes, and those that it waits for. Each sends
  its bytes (`network.Collective.sent`) over two of the chip's links, as a ring along one axis of the torus
  does. An axis of the mesh that lies along two of the torus may be faster, one without a wrap-around slower.

Left out: the latency of collectives, the host, the input pipeline, and what data decide.
"""

from __future__ import annotations

from transformer_jax.launch.topology import Generation
from transformer_jax.planner.counts import Totals

RING = 2
"""Links of a chip that a ring uses: one to each neighbour."""


def predict(totals: Totals, chip: Generation) -> tuple[float, dict[str, float], dict[str, float]]:
    """Seconds of a step, their parts, and what each bound alone takes: memory its bytes at the bandwidth,
    network its bytes at that of the links, compute the products at the peak, or what the cycles are beyond
    the memory's time where that is more."""
    link = RING * chip.network / chip.links
    network = {True: 0.0, False: 0.0}
    for one, times in totals.collectives.items():
        network[one.hidden] += one.sent * times / link
    kernels = max(totals.kernel_flops / chip.flops, totals.kernel_bytes / chip.bandwidth)
    compute = totals.cycles / chip.clock
    parts = {
        "compute": compute,
        "kernels": kernels,
        "hidden": network[True],
        "exposed": network[False],
    }
    products = (totals.flops + totals.kernel_flops) / chip.flops
    memory = (totals.bytes + totals.kernel_bytes) / chip.bandwidth
    bounds = {
        "compute": max(products, compute + kernels - memory),
        "memory": memory,
        "network": sum(network.values()),
    }
    return max(compute + kernels, network[True]) + network[False], parts, bounds
