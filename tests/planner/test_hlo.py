"""The reader of compiled programs, on small texts and on what XLA makes of functions whose cost is known."""

from __future__ import annotations

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from transformer_jax.launch.topology import GENERATIONS
from transformer_jax.measure.flops import count_flops
from transformer_jax.planner.convolution import product_flops
from transformer_jax.planner.counts import Totals, Work, counted
from transformer_jax.planner.hlo import Array, arrays, parse, trips
from transformer_jax.planner.network import collective
from transformer_jax.planner.predict import predict

pytestmark = pytest.mark.quick

MESH = {"data": 2, "fsdp": 4, "tensor": 1, "sequence": 1}
LOOP = re.sub(
    r"CYCLES\((\d+)\)",
    r'backend_config={"window_config":{"estimated_cycles":"\1"}}',
    """HloModule small

%fused (p.0: f32[8,16], p.1: s32[]) -> f32[1,16] {
  %p.0 = f32[8,16]{1,0:T(8,128)} parameter(0)
  %p.1 = s32[]{:T(128)} parameter(1)
  ROOT %slice = f32[1,16]{1,0:T(8,128)S(1)} dynamic-slice(%p.0, %p.1, %p.1), dynamic_slice_sizes={1,16}
}

%body (carry.1: (s32[], f32[8,16])) -> (s32[], f32[8,16]) {
  %carry.1 = (s32[]{:T(128)}, f32[8,16]{1,0:T(8,128)}) parameter(0)
  %i = s32[]{:T(128)} get-tuple-element(%carry.1), index=0
  %x = f32[8,16]{1,0:T(8,128)} get-tuple-element(%carry.1), index=1
  %two = s32[]{:T(128)} constant(2)
  %next = s32[]{:T(128)} add(%i, %two)
  %row = f32[1,16]{1,0:T(8,128)S(1)} fusion(%x, %i), kind=kLoop, calls=%fused, CYCLES(100)
  %never = f32[8,16]{1,0:T(8,128)} copy(%x), CYCLES(18446744073709551615)
  %sum = f32[8,16]{1,0:T(8,128)} all-reduce(%x), channel_id=1, replica_groups=[2,4]<=[8], to_apply=%add
  ROOT %out = (s32[]{:T(128)}, f32[8,16]{1,0:T(8,128)}) tuple(%next, %sum)
}

%condition (carry.2: (s32[], f32[8,16])) -> pred[] {
  %carry.2 = (s32[]{:T(128)}, f32[8,16]{1,0:T(8,128)}) parameter(0)
  %end = s32[]{:T(128)} constant(11)
  %j = s32[]{:T(128)} get-tuple-element(%carry.2), index=0
  ROOT %less = pred[]{:T(512)} compare(%j, %end), direction=LT
}

ENTRY %main (x.1: f32[8,16]) -> (s32[], f32[8,16]) {
  %x.1 = f32[8,16]{1,0:T(8,128)} parameter(0)
  %one = s32[]{:T(128)} constant(1)
  %start = (s32[]{:T(128)}, /*index=1*/f32[8,16]{1,0:T(8,128)}) tuple(%one, %x.1)
  ROOT %loop = (s32[]{:T(128)}, f32[8,16]{1,0:T(8,128)}) while(%start), condition=%condition, body=%body
}
""",
)


def test_a_loop_turns_from_its_first_value_to_its_last_by_its_step():
    module = parse(LOOP)
    main = module.computations["main"]
    assert trips(module, main, main.root) == 5  # 1, 3, 5, 7, 9
    totals = counted(module, MESH)
    assert totals.cycles == 500
    assert max(one.operations for one in totals.work) == 1, "a collective is no work of the core"
    row, whole = 16 * 4, 8 * 16 * 4
    assert totals.bytes == 5 * (row + 2 * whole), "of x the fusion reads one row, into the core's own memory"
    ((one, times),) = totals.collectives.items()
    assert (one.kind, one.axes, one.devices, one.bytes, times) == ("all-reduce", ("fsdp",), 4, whole, 5)
    assert one.sent == 2 * 3 / 4 * whole
    assert totals.unknown == 0


def test_an_estimate_that_no_model_stands_behind_does_not_count():
    fusion = '"estimated_cycles":"100"'
    for kind, cycles in (("CLASSIC", 100), ("INVALID", 0)):
        totals = counted(
            parse(LOOP.replace(fusion, f'{fusion},"cost_model_type":"COST_MODEL_TYPE_{kind}"')), MESH
        )
        row, whole = 16 * 4, 8 * 16 * 4
        slice_ = Work(cycles=100, bytes=row) if cycles else Work(bytes=row, touched=2 * row)
        never = Work(bytes=2 * whole, touched=2 * whole)
        assert totals.cycles == 5 * cycles
        assert {one: times for one, times in totals.work.items() if one.bytes} == {slice_: 5, never: 5}


STACKED = """HloModule stacked

%inner (i.0: f32[8,16], i.1: s32[]) -> f32[1,16] {
  %i.0 = f32[8,16]{1,0} parameter(0)
  %i.1 = s32[]{:T(128)} parameter(1)
  ROOT %slice = f32[1,16]{1,0} dynamic-slice(%i.0, %i.1, %i.1), dynamic_slice_sizes={1,16}
}

%fused (p.0: f32[8,16], p.1: f32[8,16], p.2: s32[]) -> f32[8,16] {
  %p.0 = f32[8,16]{1,0} parameter(0)
  %p.1 = f32[8,16]{1,0} parameter(1)
  %p.2 = s32[]{:T(128)} parameter(2)
  %row = f32[1,16]{1,0} fusion(%p.1, %p.2), kind=kLoop, calls=%inner
  %twice = f32[1,16]{1,0} add(%row, %row)
  ROOT %update = f32[8,16]{1,0} dynamic-update-slice(%p.0, %twice, %p.2, %p.2)
}

ENTRY %main (x: f32[8,16], y: f32[8,16], i: s32[]) -> f32[8,16] {
  %x = f32[8,16]{1,0} parameter(0)
  %y = f32[8,16]{1,0} parameter(1)
  %i = s32[]{:T(128)} parameter(2)
  %start = (f32[8,16]{1,0:S(1)}, f32[8,16]{1,0}, u32[]{:S(2)}) copy-start(%y)
  %saved = f32[8,16]{1,0} fusion(%x, %y, %i), kind=kLoop, calls=%fused
  ROOT %done = f32[8,16]{1,0:S(1)} copy-done(%start)
}
"""


def test_a_layer_of_stacked_arrays_moves_its_own_slice_and_a_copy_beside_it_is_not_waited_for():
    totals = counted(parse(STACKED), MESH)
    row, whole = 16 * 4, 8 * 16 * 4
    assert totals.bytes == 2 * row + whole, "the slice of a fusion inside of the fusion, the update, the copy"
    assert dict(totals.work) == {Work(bytes=2 * row, touched=2 * row, operations=16): 1}


def test_a_loop_whose_end_is_an_argument_counts_once_and_says_so():
    text = LOOP.replace(
        "%end = s32[]{:T(128)} constant(11)", "%end = s32[] get-tuple-element(%carry.2), index=2"
    )
    totals = counted(parse(text), MESH)
    assert (totals.cycles, totals.unknown) == (100, 1)


def test_arrays_know_their_bytes_and_where_they_lie():
    found = arrays(
        "(bf16[2,3]{1,0:T(8,128)(2,1)S(1)}, /*index=1*/pred[5]{0}, u32[]{:S(2)}, s4[3]{0}, token[])"
    )
    assert found == (
        Array("bf16", (2, 3), 1),
        Array("pred", (5,)),
        Array("u32", (), 2),
        Array("s4", (3,)),
        Array("token", ()),
    )
    assert [array.bytes for array in found] == [12, 5, 4, 2, 0]


def one_line(line, operands=("f32[8]{0}",)):
    """An instruction in a program of its own."""
    given = "\n".join(f"  %a.{i} = {form} parameter({i})" for i, form in enumerate(operands))
    module = parse(f"HloModule m\n\nENTRY %main (a: f32[8]) -> f32[8] {{\n{given}\n  ROOT %x = {line}\n}}\n")
    main = module.computations["main"]
    return main, main.root


@pytest.mark.parametrize(
    ("groups", "axes"),
    [
        ("replica_groups={{0,1,2,3},{4,5,6,7}}", ("fsdp",)),
        ("replica_groups={{0,4},{1,5},{2,6},{3,7}}", ("data",)),
        ("replica_groups={}", ("data", "fsdp")),
        ("replica_groups=[2,4]<=[8]", ("fsdp",)),
        ("replica_groups=[4,2]<=[2,4]T(1,0)", ("data",)),
        ("replica_groups=mesh['data'=2,'fsdp'=4,'tensor'=1,'sequence'=1] {'fsdp'}", ("fsdp",)),
        ("replica_groups=mesh['axis_0'=8] {'axis_0'}", ("data", "fsdp")),
        ("replica_groups=mesh['axis_0'=8] {'axis_0':(1)2}", ("data",)),
        ("replica_groups=mesh['axis_0'=8] {'axis_0':(2)4}", ("fsdp",)),
        ("replica_groups=mesh['a'=4,'b'=2], device_ids=([2,4]T(1,0)) {'b'}", ("data",)),
    ],
)
def test_groups_of_devices_lie_along_axes_of_the_mesh(groups, axes):
    where, one = one_line(f"f32[8]{{0}} all-reduce(%a.0), channel_id=1, {groups}, to_apply=%add")
    found = collective("all-reduce", where, one, MESH, hidden=False)
    assert found.axes == axes
    assert found.devices == np.prod([MESH[axis] for axis in axes])


def test_a_permutation_moves_along_the_axis_in_which_its_pairs_differ():
    pairs = "source_target_pairs={{0,1},{1,2},{2,3},{3,0},{4,5},{5,6},{6,7},{7,4}}"
    where, one = one_line(f"(f32[8]{{0}}, f32[8]{{0}}, u32[]) collective-permute-start(%a.0), {pairs}")
    found = collective("collective-permute", where, one, MESH, hidden=True)
    assert (found.axes, found.bytes, found.sent) == (("fsdp",), 32, 32)


@pytest.mark.parametrize(
    ("line", "operands", "flops"),
    [
        # A plain product, and a batch of products that is written as a dilated window.
        (
            "f32[4,6]{1,0} convolution(%a.0, %a.1), dim_labels=bf_io->bf",
            ("f32[4,5]{1,0}", "f32[5,6]{1,0}"),
            2 * 4 * 5 * 6,
        ),
        (
            "f32[3,4,6]{2,1,0} convolution(%a.0, %a.1), window={size=3 stride=2 pad=0_0 lhs_dilate=3}, "
            "dim_labels=0bf_0io->0bf",
            ("f32[3,4,5]{2,1,0}", "f32[3,5,6]{2,1,0}"),
            2 * 3 * 4 * 5 * 6,
        ),
        # One place of the input, padded so that one tap at a time meets it.
        (
            "f32[7,3,6]{2,1,0} convolution(%a.0, %a.1), window={size=3 pad=2_2 rhs_reversal=1}, "
            "dim_labels=bf0_0io->b0f",
            ("f32[7,5,1]{2,1,0}", "f32[3,5,6]{2,1,0}"),
            2 * 7 * 3 * 5 * 6,
        ),
        (
            "f32[2,4,6]{2,1,0} dot(%a.0, %a.1), lhs_batch_dims={0}, rhs_batch_dims={0}, "
            "lhs_contracting_dims={2}, rhs_contracting_dims={1}",
            ("f32[2,4,5]{2,1,0}", "f32[2,5,6]{2,1,0}"),
            2 * 2 * 4 * 5 * 6,
        ),
    ],
)
def test_products_count_what_is_there_and_no_padding(line, operands, flops):
    assert product_flops(*one_line(line, operands)) == flops


def test_a_compiled_scan_is_counted_with_its_turns_and_equals_the_unrolled_program():
    w, x = jnp.ones((7, 16, 16)), jnp.ones((4, 16))

    def layers(unroll):
        def loss(w, x):
            y, _ = jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, w, unroll=unroll)
            return (y**2).sum()

        return jax.grad(loss)

    wanted = count_flops(layers(1), w, x)
    for unroll in (1, 7):
        compiled = jax.jit(layers(unroll)).lower(w, x).compile()
        totals = counted(parse(compiled.as_text()), {"data": 1})
        assert totals.flops == pytest.approx(wanted, rel=0.05)
        assert not totals.unknown


def test_kernels_count_what_their_authors_declare_and_the_bytes_that_they_touch():
    line = 'custom-call(%a.0), custom_call_target="TARGET", backend_config={"cost_estimate":{"flops":"70"}}'
    form = "HloModule m\n\nENTRY %main (a: f32[8]) -> f32[8] {\n  %a.0 = f32[8]{0} parameter(0)\n"
    text = f"{form}  ROOT %x = f32[8]{{0}} {line}\n}}\n"
    found = counted(parse(text.replace("TARGET", "tpu_custom_call")), MESH)
    assert (found.kernels, found.kernel_flops, found.kernel_bytes, found.bytes) == (1, 70, 64, 0)
    other = counted(parse(text.replace("TARGET", "AllocateBuffer")), MESH)
    assert (other.kernels, other.kernel_flops, other.kernel_bytes, other.bytes) == (0, 0, 0, 0)


@pytest.mark.parametrize("chip", GENERATIONS)
def test_no_step_is_shorter_than_its_products_at_the_peak(chip):
    """Also where the compiler estimates none of them."""
    seconds, _, bounds = predict(Totals(flops=1e15), GENERATIONS[chip])
    assert seconds == bounds["compute"] == 1e15 / GENERATIONS[chip].flops


def test_what_is_no_program_is_refused():
    with pytest.raises(ValueError, match="no ENTRY"):
        parse("HloModule m\n")
