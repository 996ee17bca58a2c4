"""What a check is given: one mechanism, built small, and the tools to compare its executions."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from transformer_jax.attention.contract import Geometry, Layout, Mixer, Mode
from transformer_jax.attention.core import CoreMixer


class Undefined(Exception):
    """The mechanism is not defined for what a check proves; the message is its own reason."""


@dataclass(frozen=True)
class Subject:
    """A mechanism in one direction, at the sizes its class names as `small`."""

    mixer: type[Mixer]
    causal: bool
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def direction(self) -> Mode:
        return "causal" if self.causal else "bidirectional"

    def require(self, mode: Mode) -> None:
        if not self.mixer.capability.defined(mode):
            raise Undefined(self.mixer.capability.refused[mode])

    def require_decoding(self) -> None:
        self.require("decoding")
        if not self.causal:
            raise Undefined("decoding goes from left to right")

    def build(self, *, dtype: str = "float64", length: int = 48, seed: int = 0, **geometry: Any) -> Mixer:
        """A mixer whose parameters are all random: zeros at the start would hide what they touch."""
        geometry = {"width": 16, "heads": 4, "head_size": 8} | geometry
        g = Geometry(**geometry, length=length, causal=self.causal, dtype=dtype)
        kind: Any = self.mixer
        mixer = kind(g, rngs=nnx.Rngs(seed), **self.options)
        graph, learned, rest = nnx.split(mixer, nnx.Param, ...)
        leaves, tree = jax.tree.flatten(learned)
        draw = np.random.default_rng(seed)
        noisy = [leaf + 0.2 * draw.standard_normal(leaf.shape).astype(leaf.dtype) for leaf in leaves]
        return nnx.merge(graph, jax.tree.unflatten(tree, noisy), rest)


def inputs(batch: int, length: int, width: int = 16, *, seed: int = 1, dtype: Any = jnp.float64) -> Any:
    """Normal x (B, T, D), in NumPy, as all that surrounds the programs: each operation of JAX outside of one
    is a program to compile."""
    return np.random.default_rng(seed).standard_normal((batch, length, width)).astype(dtype)


def plain(batch: int, length: int) -> Layout:
    """`Layout.plain`, in NumPy."""
    positions: Any = np.broadcast_to(np.arange(length, dtype=np.int32), (batch, length))
    return Layout(positions)


def core_of(mixer: Mixer) -> CoreMixer:
    """The mixer as one with streams and a definition. Raises Undefined where it has none."""
    if not isinstance(mixer, CoreMixer):
        raise Undefined(f"{mixer.name} has no streams of its own to compare with a definition")
    return mixer


def agree(found: Any, wanted: Any, *, within: float, what: str, least: float = 1e-4) -> None:
    """‖found − wanted‖ ≤ within · ‖wanted‖, leaf by leaf; raises AssertionError with the figure.

    A leaf is measured against `least` of the whole at least, a ten-thousandth: one that is zero in exact
    arithmetic (the gradient in k of a single token) would otherwise compare rounding with rounding, which a
    small normalizer makes a thousand times larger.
    """
    named = [
        (jax.tree_util.keystr(path), np.asarray(a, np.float64))
        for path, a in jax.tree.leaves_with_path(found)
    ]
    exact = [np.asarray(b, np.float64) for b in jax.tree.leaves(wanted)]
    floor = least * math.hypot(*map(np.linalg.norm, exact)) or 1.0
    for (name, a), b in zip(named, exact, strict=True):
        assert a.shape == b.shape, f"{what}{name}: shape {a.shape}, wanted {b.shape}"
        assert np.isfinite(a).all(), f"{what}{name} is not finite"
        error = float(np.linalg.norm(a - b)) / max(float(np.linalg.norm(b)), floor)
        assert error <= within, f"{what}{name}: error {error:.2e} exceeds {within:.0e}"


@contextmanager
def optimized(wanted: bool) -> Iterator[None]:
    """Whether a CPU's compiler optimizes the machine code of what is compiled inside, single operations such
    as those of an initialization included."""
    before = jax.config.values["jax_disable_most_optimizations"]
    jax.config.update("jax_disable_most_optimizations", not wanted and jax.default_backend() == "cpu")
    try:
        yield
    finally:
        jax.config.update("jax_disable_most_optimizations", before)


def jit(f: Callable, **options: Any) -> Any:
    """jax.jit for a small program that runs once or twice: on a CPU its machine code is written in the
    shortest time, not to the shortest time. What XLA's own passes make of the program is the same."""
    return jax.jit(f, compiler_options=_quick_to_compile(), **options)


def jit_as_users(f: Callable) -> Callable:
    """jax.jit, which inside of `optimized(True)` compiles as it does for users, whatever XLA_FLAGS say."""
    return jax.jit(f, compiler_options=_fusion_emitters(True))


@cache
def _quick_to_compile() -> dict[str, Any]:
    """Compiler options of a CPU: LLVM optimizes nothing, in one thread; and where jaxlib still has them the
    emitters write fusions that need no MLIR, which takes most of the rest."""
    if jax.default_backend() != "cpu":
        return {}
    sure = {"xla_backend_optimization_level": 0, "xla_cpu_parallel_codegen_split_count": 1}
    return sure | _fusion_emitters(False)


@cache
def _fusion_emitters(wanted: bool) -> dict[str, Any]:
    """The compiler option that chooses a CPU's emitters, where jaxlib has it (0.10 does, 0.12 does not)."""
    options = {"xla_cpu_use_fusion_emitters": wanted}
    try:
        jax.jit(lambda: 0, compiler_options=options)()
    except jax.errors.JaxRuntimeError:  # there is no such option
        return {}
    return options


def run(mixer: Mixer, x: Any, layout: Layout | None = None, state: Any = None, **kw: Any):
    """One call, compiled: `mixer(x, layout, state)`."""
    return call(mixer)(x, plain(*x.shape[:2]) if layout is None else layout, state, **kw)


def call(mixer: Mixer) -> Callable:
    graph, values = nnx.split(mixer)

    @jit
    def go(values, x, layout, state, context=None):
        return nnx.merge(graph, values)(x, layout, state, context)

    return lambda x, layout, state=None, context=None: go(values, x, layout, state, context)


def part(layout: Layout, start: int, stop: int) -> Layout:
    """The layout of tokens `start` to `stop`."""
    lengths: Any = layout.lengths
    return Layout(
        layout.positions[:, start:stop],
        None if layout.segments is None else layout.segments[:, start:stop],
        None if lengths is None else np.clip(lengths - start, 0, stop - start),
    )
