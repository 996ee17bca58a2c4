"""Reads what XLA made of a function: its temporary memory and the largest array in it."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any

import jax

SHAPE = re.compile(r"\b(?:pred|bf16|[csuf]\d+\w*)\[([\d,<=]+)\]")
"""An array type in HLO text: `f32[8,1024,64]`."""


def compiled(fn: Callable, *args: Any) -> jax.stages.Compiled:
    """The optimized program of `fn(*args)`; args may be `jax.ShapeDtypeStruct`s. Nothing is run."""
    jitted = fn if hasattr(fn, "lower") else jax.jit(fn)
    return jitted.lower(*args).compile()


def compiled_temporaries(fn: Callable | jax.stages.Compiled, *args: Any) -> int:
    """Bytes that the compiled program holds at most besides its arguments and its results.

    On a CPU this is the figure to read: `peak_memory_in_bytes` misleads there.
    """
    program = fn if isinstance(fn, jax.stages.Compiled) else compiled(fn, *args)
    return program.memory_analysis().temp_size_in_bytes


def largest_array(fn: Callable | jax.stages.Compiled | str, *args: Any) -> int:
    """Elements of the largest array anywhere in the optimized program, insides of fusions included.

    A mechanism that claims to avoid T² memory shows here whether it does: a dense mask cannot hide.

    Args:
      fn: a function to compile for `args`, a compiled program, or the text of one.
    """
    if not isinstance(fn, str):
        fn = (fn if isinstance(fn, jax.stages.Compiled) else compiled(fn, *args)).as_text()
    shapes = set(SHAPE.findall(fn))
    return max((math.prod(int(size) for size in re.findall(r"\d+", shape)) for shape in shapes), default=1)
