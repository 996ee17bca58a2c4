"""Matrix products are counted where they are, as often as they run."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import pytest
from jax import lax
from jax.experimental import pallas as pl
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from transformer_jax.errors import BadInput
from transformer_jax.measure.flops import count_flops

pytestmark = pytest.mark.quick

SQUARE = jax.ShapeDtypeStruct((8, 8), jnp.float32)
ONE = 2 * 8**3  # FLOPs of a product of two such matrices


def test_a_batched_product_counts_two_per_multiply_add():
    q = jax.ShapeDtypeStruct((3, 5, 2, 7), jnp.float32)
    k = jax.ShapeDtypeStruct((3, 11, 2, 7), jnp.float32)
    assert count_flops(lambda q, k: jnp.einsum("btnh,bsnh->bnts", q, k), q, k) == 2 * 3 * 2 * 5 * 11 * 7


def test_elementwise_work_is_free():
    assert count_flops(lambda x: jnp.tanh(x).sum() + jnp.sort(x)[0, 0], SQUARE) == 0


def test_a_convolution_counts_its_taps_and_its_own_channels():
    x = jax.ShapeDtypeStruct((2, 16, 8), jnp.float32)

    def conv(groups):
        kernel = jnp.ones((4, 8 // groups, 8))
        return lambda x: lax.conv_general_dilated(
            x, kernel, (1,), "VALID", dimension_numbers=("NTC", "TIO", "NTC"), feature_group_count=groups
        )

    assert count_flops(conv(1), x) == 2 * (2 * 13 * 8) * 4 * 8
    assert count_flops(conv(8), x) == 2 * (2 * 13 * 8) * 4


def scan(x):
    return lax.scan(lambda c, _: (c @ x, None), x, None, length=3)[0]


def two_scans(x):
    return lax.scan(lambda c, _: (scan(c), None), x, None, length=5)[0]


def steps_of_two(x):
    return lax.while_loop(lambda s: s[0] < 7, lambda s: (s[0] + 2, s[1] @ x), (1, x))[1]


def bounds_under_jit(x):
    return jax.jit(lambda x: lax.fori_loop(2, 6, lambda i, c: c @ x, x))(x)


def no_trip(x):
    return lax.while_loop(lambda s: s[0] < 0, lambda s: (s[0] + 1, s[1] @ x), (3, x))[1]


def dear_branch(x):
    return lax.cond(x[0, 0] > 0, lambda x: x @ x @ x, lambda x: x @ x, x)


@pytest.mark.parametrize(
    "fn, products",
    [(scan, 3), (two_scans, 15), (steps_of_two, 3), (bounds_under_jit, 4), (no_trip, 0), (dear_branch, 2)],
)
def test_control_flow_counts_as_often_as_it_runs(fn, products):
    assert count_flops(fn, SQUARE) == products * ONE


@jax.custom_vjp
def square(x):
    return x @ x


square.defvjp(lambda x: (square(x), x), lambda x, g: (g @ x.T + x.T @ g,))


@jax.custom_jvp
def twice(x):
    return x @ x


twice.defjvp(lambda primal, tangent: (twice(*primal), tangent[0] @ primal[0]))


@pytest.mark.parametrize("wrap", [jax.jit, jax.checkpoint, lambda f: f], ids=["jit", "checkpoint", "plain"])
@pytest.mark.parametrize("fn", [square, twice])
def test_wrapped_functions_count_once(fn, wrap):
    assert count_flops(wrap(fn), SQUARE) == ONE


def test_the_backward_pass_counts_its_own_products():
    assert count_flops(jax.grad(lambda x: square(x).sum()), SQUARE) == 3 * ONE
    # Rematerialization pays the forward product of the inner layer again.
    plain = jax.grad(lambda x: jnp.sin(jnp.sin(x @ x) @ x).sum())
    remat = jax.grad(lambda x: jax.checkpoint(lambda x: jnp.sin(jnp.sin(x @ x) @ x))(x).sum())
    assert count_flops(remat, SQUARE) > count_flops(plain, SQUARE)


def test_shards_count_on_every_device():
    # An abstract mesh is enough to trace for four devices on a machine with one.
    mesh = jax.sharding.AbstractMesh((4, 2), ("data", "model"), axis_types=(AxisType.Auto,) * 2)
    x = jax.ShapeDtypeStruct((32, 8), jnp.float32)
    w = jax.ShapeDtypeStruct((8, 8), jnp.float32)

    def product(x, w):
        return jax.shard_map(
            jnp.dot, mesh=mesh, in_specs=(P("data"), P()), out_specs=P("data"), axis_names={"data"}
        )(x, w)

    assert count_flops(product, x, w) == count_flops(jnp.dot, x, w) == 4 * ONE


def test_a_kernel_counts_over_its_grid():
    def kernel(x, o):
        o[...] = x[...] @ x[...]

    def call(x):
        return pl.pallas_call(
            kernel,
            grid=(4,),
            in_specs=[pl.BlockSpec((8, 8), lambda i: (0, 0))],
            out_specs=pl.BlockSpec((8, 8), lambda i: (i, 0)),
            out_shape=jax.ShapeDtypeStruct((32, 8), jnp.float32),
            interpret=True,
        )(x)

    assert count_flops(call, SQUARE) == 4 * ONE


def test_trips_that_depend_on_data_are_refused_only_with_products():
    def until_small(step):
        return lambda x: lax.while_loop(lambda c: c.sum() > 1, step, x)

    assert count_flops(until_small(lambda c: c / 2), SQUARE) == 0
    with pytest.raises(BadInput, match="depends on data"):
        count_flops(until_small(lambda c: c @ c), SQUARE)
    with pytest.raises(BadInput, match="depends on data"):
        count_flops(lambda n, x: lax.fori_loop(0, n, lambda i, c: c @ c, x), jnp.int32(3), SQUARE)


def test_hidden_products_are_refused():
    def groups(x, w, n):
        return lax.ragged_dot(x, w, n)

    with pytest.raises(BadInput, match="ragged_dot"):
        count_flops(groups, jnp.ones((4, 8)), jnp.ones((2, 8, 8)), jnp.array([1, 3]))


def test_trees_and_keywords_are_arguments():
    assert count_flops(lambda tree, *, w: tree["x"] @ w, {"x": SQUARE}, w=SQUARE) == ONE
