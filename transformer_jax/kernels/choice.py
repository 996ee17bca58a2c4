"""Which execution runs: the engine's own, which XLA compiles, or a kernel written for the device.

An engine says here which kernels it has for a call and why one cannot honour it; the choice follows from
the platform that the program is compiled for (`parallel.mesh.platform`) and from what the user asked. It is
made while a program is traced, so one program has one execution, and whoever traces may listen (`recording`).
(`jax.lax.platform_dependent` would choose later, but trace every branch, and nobody could say which was
taken.)
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Literal

from transformer_jax.errors import BadInput
from transformer_jax.parallel.mesh import platform

Execution = Literal["auto", "xla", "kernel", "interpret"]
"""What a user asks for: a kernel where one can honour the call; the engine's own execution; a kernel or a
refusal; a TPU's kernel interpreted by JAX, on any device, to see what it computes and not how fast."""


@dataclass(frozen=True)
class Kernel:
    """A kernel that a call could run on.

    Attributes:
      name: as a record has it.
      platform: for which it is written.
      refusal: why it cannot honour this call, as a clause that follows "because"; empty where it can.
      interpretable: whether JAX can interpret it, as it can what is written in Pallas for TPUs.
    """

    name: str
    platform: Literal["tpu", "gpu"]
    refusal: str = ""
    interpretable: bool = True


_asked: ContextVar[tuple[str, Execution]] = ContextVar("asked", default=("", "auto"))
_heard: ContextVar[dict[str, set[str]] | None] = ContextVar("heard", default=None)


@contextmanager
def executing(mechanism: str, asked: Execution) -> Iterator[None]:
    """What is traced inside belongs to `mechanism`, whose user asked for that execution."""
    token = _asked.set((mechanism, asked))
    try:
        yield
    finally:
        _asked.reset(token)


@contextmanager
def recording() -> Iterator[dict[str, set[str]]]:
    """Collects, of what is traced inside, mechanism → the executions that its calls took, each the name of a
    kernel or "xla" with the reason. A mechanism that is not there had no choice: "xla"."""
    heard: dict[str, set[str]] = {}
    token = _heard.set(heard)
    try:
        yield heard
    finally:
        _heard.reset(token)


def choose(kernels: Sequence[Kernel]) -> tuple[str, bool] | None:
    """The kernel to run, by its name, and whether it is to be interpreted; None for the engine's execution.

    Raises BadInput where a kernel is asked for and none can honour the call: the sentence says why.
    """
    mechanism, asked = _asked.get()
    if asked == "xla":
        return _said(mechanism, None, "asked for")
    if asked == "interpret":
        able = [kernel for kernel in kernels if kernel.interpretable]
    else:
        able = [kernel for kernel in kernels if kernel.platform == platform()]
    why = f"no kernel for {platform()}"
    for kernel in able:
        if not kernel.refusal:
            return _said(mechanism, (kernel.name, asked == "interpret"), "")
        why = kernel.refusal
    if asked == "auto":
        return _said(mechanism, None, why)
    raise BadInput(
        f"execution={asked} asks for a kernel, but {mechanism or 'this call'} runs on none: {why}. Leave "
        f'execution at "auto".'
    )


def _said(mechanism: str, chosen: tuple[str, bool] | None, why: str) -> tuple[str, bool] | None:
    heard = _heard.get()
    if heard is not None:
        if chosen is None:
            said = f"xla ({why})"
        else:
            said = f"{chosen[0]} (interpreted)" if chosen[1] else chosen[0]
        heard.setdefault(mechanism, set()).add(said)
    return chosen
