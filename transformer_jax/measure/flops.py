"""Counts the matrix products of a function, from its jaxpr.

What is counted is what the function says, not what a compiler makes of it: every `dot_general` and
convolution at two FLOPs per multiply-add, a loop's body times its trips. Element-wise work, reductions,
triangular solves and sorts are not matrix products and count as nothing. (XLA's own
`cost_analysis()` counts a loop's body once, so it cannot compare mechanisms.)
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
from jax.extend import core

from transformer_jax.errors import BadInput

OPAQUE = {"ragged_dot_general", "scaled_matmul_wrapper", "ffi_call", "pure_callback", "io_callback"}
"""Primitives that may hold matrix products which a jaxpr does not show."""


def count_flops(fn: Callable, *args: Any, **kwargs: Any) -> int:
    """Matrix-product FLOPs (two per multiply-add) of one call `fn(*args, **kwargs)`, over all devices.

    Args:
      fn: traceable by JAX. Of a conditional, the dearest branch counts.
      args, kwargs: arrays, `jax.ShapeDtypeStruct`s, or trees of them. Nothing is computed.

    Raises:
      BadInput: the count cannot be read: a loop with products whose trips depend on data, or an
        operation that hides its products.
    """
    return _jaxpr_flops(jax.make_jaxpr(fn)(*args, **kwargs).jaxpr)


def trip_flops(jaxpr: Any) -> int:
    """FLOPs of one trip of the loops that a jaxpr itself holds, whose number of trips is an argument, and of
    what stands beside them. Raises BadInput as `count_flops` does."""
    loops = [eqn for eqn in jaxpr.eqns if eqn.primitive.name == "while"]
    beside = sum(_equation_flops(eqn) for eqn in jaxpr.eqns if eqn.primitive.name != "while")
    return beside + sum(_jaxpr_flops(eqn.params["body_jaxpr"].jaxpr) for eqn in loops)


def _jaxpr_flops(jaxpr: Any) -> int:
    return sum(_equation_flops(eqn) for eqn in jaxpr.eqns)


def _equation_flops(eqn: core.JaxprEqn) -> int:
    name, params = eqn.primitive.name, eqn.params
    if name == "dot_general":
        return _product_flops(eqn)
    if name == "conv_general_dilated":
        return _convolution_flops(eqn)
    if name == "cond":
        return max(_jaxpr_flops(branch.jaxpr) for branch in params["branches"])
    if name == "while":
        return _while_flops(eqn)
    if name in OPAQUE:
        raise BadInput(f"The matrix products of {name!r} cannot be counted: write it with jnp.einsum.")
    # jit, remat, custom_jvp and custom_vjp call what they hold once.
    inside = sum(_jaxpr_flops(jaxpr) for jaxpr in core.jaxprs_in_params(params))
    if name == "scan":
        return params["length"] * inside
    if name == "shard_map":
        # The body is what one device does on its shard of the axes that are manual in it.
        return inside * math.prod(params["mesh"].shape[axis] for axis in params["newly_manual_axes"])
    if name == "pallas_call":
        return inside * math.prod(params["grid_mapping"].grid)
    return inside


def _product_flops(eqn: core.JaxprEqn) -> int:
    (contracted, _), _ = eqn.params["dimension_numbers"]
    left = _shape(eqn.invars[0])
    return 2 * math.prod(_shape(eqn.outvars[0])) * math.prod(left[axis] for axis in contracted)


def _convolution_flops(eqn: core.JaxprEqn) -> int:
    """Each output element is a product over the kernel's taps and its group's channels, padding included."""
    _, channels, *taps = eqn.params["dimension_numbers"].rhs_spec
    kernel = _shape(eqn.invars[1])
    return 2 * math.prod(_shape(eqn.outvars[0])) * kernel[channels] * math.prod(kernel[axis] for axis in taps)


def _while_flops(eqn: core.JaxprEqn) -> int:
    body = _jaxpr_flops(eqn.params["body_jaxpr"].jaxpr)
    test = _jaxpr_flops(eqn.params["cond_jaxpr"].jaxpr)
    if body == test == 0:
        return 0
    trips = _trips(eqn)
    if trips is None:
        raise BadInput(
            "A while loop holds matrix products and its number of trips depends on data: use jax.lax.scan, "
            "or jax.lax.fori_loop with constant bounds."
        )
    return trips * body + (trips + 1) * test


def _trips(eqn: core.JaxprEqn) -> int | None:
    """Trips of a counted loop: `while i < n: i += step` with constants; None for any other."""
    body, test = eqn.params["body_jaxpr"].jaxpr, eqn.params["cond_jaxpr"].jaxpr
    test_constants, body_constants = eqn.params["cond_nconsts"], eqn.params["body_nconsts"]
    first = test_constants + body_constants
    if len(test.eqns) != 1 or test.eqns[0].primitive.name != "lt" or test.eqns[0].outvars != test.outvars:
        return None
    counter, limit = test.eqns[0].invars
    if isinstance(counter, core.Literal) or counter in test.invars[:test_constants]:
        return None
    place = test.invars.index(counter) - test_constants
    start = _constant(eqn.invars[first + place])
    step = _step(body, body_constants + place, place)
    end = _constant(limit)
    if end is None and limit in test.invars:
        at = test.invars.index(limit)
        if at < test_constants:
            end = _constant(eqn.invars[at])
        elif body.outvars[at - test_constants] is body.invars[body_constants + at - test_constants]:
            end = _constant(eqn.invars[first + at - test_constants])
    if start is None or end is None or step is None or step <= 0:
        return None
    return max(0, -(-(end - start) // step))


def _step(body: Any, before: int, after: int) -> int | None:
    """What a loop's body adds to the carry that comes in at `before` and leaves at `after`."""
    for eqn in body.eqns:
        if eqn.outvars[0] is body.outvars[after] and eqn.primitive.name == "add":
            if eqn.invars[0] is body.invars[before]:
                return _constant(eqn.invars[1])
            if eqn.invars[1] is body.invars[before]:
                return _constant(eqn.invars[0])
    return None


def _constant(atom: Any) -> int | None:
    return int(atom.val) if isinstance(atom, core.Literal) else None


def _shape(atom: Any) -> tuple[int, ...]:
    return atom.aval.shape
