"""Rules: names of axes become axes of the mesh, without collisions, for every mechanism."""

from __future__ import annotations

import jax
import pytest
from flax import nnx
from jax.sharding import AbstractMesh, PartitionSpec

from transformer_jax.attention.catalogue import catalogue
from transformer_jax.attention.contract import Geometry
from transformer_jax.conformance import subjects
from transformer_jax.errors import BadInput
from transformer_jax.parallel.mesh import AXES, on
from transformer_jax.parallel.rules import RULES, Rules, constrain, require_divides

pytestmark = pytest.mark.quick
MESH = AbstractMesh((2, 4, 2, 1), AXES)


@pytest.mark.parametrize(
    "names, shape, cuts",
    [
        (("embed", "heads"), (8, 6), (("fsdp",), ("tensor",))),
        (("heads", "embed"), (6, 8), (("tensor",), ("fsdp",))),
        (("layers", "embed", "heads"), (4, 8, 6), (None, ("fsdp",), ("tensor",))),
        (("embed", "heads"), (8, 7), (("fsdp",), None)),  # 7 heads are held whole
        (("embed", "heads"), (6, 8), (None, ("tensor",))),  # and nothing is left for fsdp
        (("embed", "-"), (6, 8), (None, ("fsdp",))),
        (None, (4, 16, 12), (None, ("fsdp",), None)),  # without names the longest axis that divides
        (("layers", None, None), (16, 4, 3), (None, ("fsdp",), None)),  # but never the layers
        (("layers", None), (4, 16), (None, None)),  # vectors are whole
        ((None,), (16,), (None,)),
        (("layers", "hidden"), (4, 16), (None, ("tensor",))),  # unless they are named
    ],
)
def test_a_parameter_is_cut_where_its_names_say(names, shape, cuts):
    names = names and tuple(None if name == "-" else name for name in names)
    assert RULES.parameter(names, shape, MESH) == PartitionSpec(*cuts)


def test_activations_are_cut_in_batch_and_time():
    mesh = AbstractMesh((2, 2, 1, 2), AXES)
    spec = RULES.spec(("batch", "sequence", None), (4, 6, 3), mesh)
    assert spec == PartitionSpec(("data", "fsdp"), ("sequence",), None)


@pytest.mark.parametrize(
    "wrong, says",
    [
        (
            lambda: RULES.spec(("heads", "hidden"), (8, 8), MESH),
            "'tensor' of the mesh would cut both 'heads'",
        ),
        (lambda: RULES.spec(("embd", None), (8, 8), MESH), "did you mean 'embed'"),
        (lambda: Rules(heads=("tensors",)), "did you mean 'tensor'"),
        (
            lambda: require_divides("model.heads", 3, ("tensor",), MESH),
            "3 does not divide over the mesh's tensor 2",
        ),
        (
            lambda: require_divides("train.batch", 4, ("data", "fsdp"), MESH),
            "data 2 × fsdp 4: choose a multiple of 8",
        ),
    ],
)
def test_what_cannot_be_is_said_in_a_sentence(wrong, says):
    with pytest.raises(BadInput, match=says):
        wrong()


def test_no_mesh_no_constraint():
    x = jax.numpy.ones((2, 3, 4))
    assert constrain(x, "batch") is x
    with on(None):
        assert constrain(x, "batch") is x


@pytest.mark.parametrize("name", catalogue())
def test_every_matrix_of_every_mechanism_is_cut(name):
    """By fsdp, where an axis of it divides, and by tensor where its heads are one of its axes."""
    subject = subjects(catalogue()[name])[0]
    geometry = Geometry(width=16, heads=4, head_size=8, length=48, causal=subject.causal)
    build = lambda: subject.mixer(geometry, rngs=nnx.Rngs(0), **subject.options)
    learned = nnx.split(jax.eval_shape(build), nnx.Param, ...)[1]
    cut, named = set(), set()
    for p in jax.tree.leaves(learned, is_leaf=lambda x: isinstance(x, nnx.Variable)):
        names = p.get_metadata().get("axes")
        spec = RULES.parameter(names, p.shape, MESH)
        axes = {axis for part in spec for axis in ([part] if isinstance(part, str) else part or ())}
        left = [size for size, part in zip(p.shape, (*spec, None, None), strict=False) if not part]
        possible = p.ndim > 1 and any(size % 4 == 0 for size in left)
        assert "fsdp" in axes or not possible, f"{p.shape} is cut as {spec}"
        cut |= axes
        named |= set(names or ())
    assert "heads" not in named or "tensor" in cut
