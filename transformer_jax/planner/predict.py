"""The model of a step's time. It is uncalibrated: nothing here was fitted to a measurement.

    step = max(compute + kernels, hidden) + exposed

compute: instructions but collectives and kernels one after another, loops with their turns. Each streams
  its blocks through the vector memory, so that moving and computing overlap, and takes the longer of
  - its bytes of HBM at the bandwidth,
  - of a product: the compiler's estimated cycles at the chip's clock,
  - of anything else: the registers that the vector unit stores, or its element-wise operations.
  Copies that run beside (copy-start, slice-start) are not waited for, but no step is shorter than all of its
  bytes of HBM take, or its products at the peak.
kernels: of those written by hand the longer of their FLOPs at the chip's peak and their bytes at the
  bandwidth of the HBM; their FLOPs as their authors declare them, or those of the engine's own execution.
hidden, exposed: collectives that run while the program computes, and those that it waits for. Each sends
  its bytes (`network.Collective.sent`) over two of the chip's links, as a ring along one axis of the torus
  does. An axis of the mesh that lies along two of the torus may be faster, one without a wrap-around slower.

Left out: the latency of collectives, the host, the input pipeline, and what data decide.
"""

from __future__ import annotations

from transformer_jax.launch.topology import Generation
from transformer_jax.planner.counts import Totals, Work

REGISTER = 8 * 128
"""Numbers of four bytes in a register of the vector unit."""
RING = 2
"""Links of a chip that a ring uses: one to each neighbour."""


def predict(totals: Totals, chip: Generation) -> tuple[float, dict[str, float], dict[str, float]]:
    """Seconds of a step, their parts, and what each bound alone takes: memory its bytes at the bandwidth,
    network its bytes at that of the links, compute the longer of the products at the peak and the cycles."""
    link = RING * chip.network / chip.links
    network = {True: 0.0, False: 0.0}
    for one, times in totals.collectives.items():
        network[one.hidden] += one.sent * times / link
    kernels = max(totals.kernel_flops / chip.flops, totals.kernel_bytes / chip.bandwidth)
    memory = (totals.bytes + totals.kernel_bytes) / chip.bandwidth
    core = {one: cycles(one, chip) / chip.clock for one in totals.work}
    waited = (times * max(core[one], one.bytes / chip.bandwidth) for one, times in totals.work.items())
    # No product is faster than the units, whether or not the compiler estimates it.
    compute = max(sum(waited), totals.bytes / chip.bandwidth, totals.flops / chip.flops)
    parts = {
        "compute": compute,
        "kernels": kernels,
        "hidden": network[True],
        "exposed": network[False],
    }
    products = (totals.flops + totals.kernel_flops) / chip.flops
    busy = sum(times * core[one] for one, times in totals.work.items())
    bounds = {
        "compute": max(products, busy + totals.kernel_flops / chip.flops),
        "memory": memory,
        "network": sum(network.values()),
    }
    return max(compute + kernels, network[True]) + network[False], parts, bounds


def cycles(work: Work, chip: Generation) -> float:
    """That the core computes for an instruction, whatever its bytes take."""
    stored = work.touched / (4 * REGISTER * chip.stores)  # what is read too: on v5e a copy takes 0.7 of this
    vectors = max(stored, work.operations / (REGISTER * chip.operations)) / chip.cores
    return max(work.cycles, vectors)
