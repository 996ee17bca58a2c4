"""What tests against numbers of other people's code share: `golden/`, whose README says which code and how.

Both sides are in float64. The streams are given as that code had them, and each test turns them into ours:
what it does to them is how the conventions differ.
"""

from __future__ import annotations

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from transformer_jax.attention.catalogue import build
from transformer_jax.attention.contract import Geometry, Layout
from transformer_jax.attention.core import CoreMixer, Streams
from transformer_jax.attention.definition import by_definition
from transformer_jax.conformance.subject import jit

CLOSE = 1e-12
"""‖ours − theirs‖ / ‖theirs‖: sums in another order, some hundreds of roundings of 1e-16 at most."""


def golden(name: str) -> dict[str, jax.Array]:
    with np.load(Path(__file__).parent / "golden" / f"{name}.npz") as file:
        return {
            key: jnp.asarray(x, jnp.float64 if x.dtype.kind == "f" else x.dtype) for key, x in file.items()
        }


def ours(name: str, q: jax.Array, *, heads: int | None = None, causal: bool = True, **options) -> CoreMixer:
    """A mixer for streams like q (B, T, N, H), or for inputs (B, T, D) in so many heads."""
    heads = heads or q.shape[2]
    size = q.shape[3] if q.ndim == 4 else None
    width = q.shape[2] if q.ndim == 3 else heads * q.shape[3]
    kv_heads, length = options.pop("kv_heads", None), options.pop("length", q.shape[1])
    geometry = Geometry(
        width=width,
        heads=heads,
        kv_heads=kv_heads,
        head_size=options.pop("size", size),
        length=length,
        causal=causal,
        rotary=options.pop("rotary", None),
        dtype="float64",
    )
    return build(name, geometry, rngs=nnx.Rngs(0), **options)


def put(parameter, value: jax.Array) -> None:
    assert parameter[...].shape == value.shape
    parameter[...] = value.astype(parameter[...].dtype)


def close(found, wanted, tolerance: float = CLOSE) -> None:
    error = float(jnp.linalg.norm(found - wanted) / jnp.linalg.norm(wanted))
    assert error < tolerance, f"error {error:.1e}"


def both_agree(mixer: CoreMixer, streams: Streams, wanted: jax.Array, tolerance=CLOSE, change=None) -> None:
    """The definition, and the execution of a whole sequence, each after a change to o."""
    layout = Layout.plain(*wanted.shape[:2])
    for o in jit(lambda s: (by_definition(mixer, s), mixer.core(s, layout, None)[0]))(streams):
        close(change(o) if change else o, wanted, tolerance)


def layer_agrees(mixer: CoreMixer, x: jax.Array, wanted: jax.Array, tolerance: float = CLOSE) -> None:
    """A whole layer, projections included, by its definition and as it is executed."""
    layout = Layout.plain(*x.shape[:2])

    def defined(x):
        streams, _ = mixer.streams(x, layout)
        return mixer.finish(mixer.after(by_definition(mixer, streams), streams), x)

    for y in jit(lambda x: (defined(x), mixer(x, layout)[0]))(x):
        close(y, wanted, tolerance)
