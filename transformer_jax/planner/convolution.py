"""FLOPs of matrix products of a compiled program, two per multiply-add; on a TPU they are convolutions."""

from __future__ import annotations

import functools
import math
import re

import numpy as np

from transformer_jax.planner.hlo import Computation, Instruction


def product_flops(where: Computation, instruction: Instruction) -> int:
    """Of one `dot` or `convolution`, or 0 of anything else."""
    if instruction.opcode == "dot":
        return _dot(where, instruction)
    return _convolution(where, instruction) if instruction.opcode == "convolution" else 0


def _dot(where: Computation, instruction: Instruction) -> int:
    left = where.instructions[instruction.operands[0]].arrays[0].shape
    axes = re.findall(r"\d+", instruction.attribute(r"lhs_contracting_dims=\{([\d,]*)\}") or "")
    return 2 * instruction.arrays[0].size * math.prod(left[int(axis)] for axis in axes)


def _convolution(where: Computation, instruction: Instruction) -> int:
    """Only products with what is there count: the compiler puts batches and shards of a matrix product into
    windows that are mostly padding, which the hardware skips."""
    images, kernel = (where.instructions[name].arrays[0].shape for name in instruction.operands[:2])
    labels = re.fullmatch(r"(\w+)_(\w+)->(\w+)", instruction.attribute(r"dim_labels=([\w>\-]+)") or "")
    read, weights, written = (labels[i] for i in (1, 2, 3))
    window = instruction.attribute(r"window=\{([^}]*)\}") or ""
    settings = dict(re.findall(r"(\w+)=(\S+)", window))
    count = sum(label.isdigit() for label in read)
    sizes = [int(n) for n in settings.get("size", "x".join("1" * count) or "1").split("x")]
    plain = lambda name: [int(n) for n in settings.get(name, "x".join("1" * count) or "1").split("x")]
    pads = [tuple(map(int, pad.split("_"))) for pad in settings.get("pad", "").split("x") if pad]
    pads = pads or [(0, 0)] * count
    pairs = 1
    for axis in range(count):
        pairs *= _pairs(
            images[read.index(str(axis))],
            instruction.arrays[0].shape[written.index(str(axis))],
            sizes[axis],
            plain("stride")[axis],
            pads[axis][0],
            plain("lhs_dilate")[axis],
            plain("rhs_dilate")[axis],
        )
    groups = int(instruction.attribute(r"batch_group_count=(\d+)") or 1)
    features = kernel[weights.index("i")] * kernel[weights.index("o")]
    return 2 * pairs * features * images[read.index("b")] // groups


@functools.cache
def _pairs(length: int, out: int, size: int, stride: int, pad: int, dilated: int, spread: int) -> int:
    """Pairs of a place of the output and a tap of the kernel that meet in an element of the input."""
    at = np.arange(out)[:, None] * stride - pad + np.arange(size)[None] * spread
    return int(((at >= 0) & (at % dilated == 0) & (at // dilated < length)).sum())
