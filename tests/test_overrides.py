from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import pytest

from transformer_jax.errors import BadInput
from transformer_jax.overrides import changed, differences, fields, parse, settable, unknown_name
from transformer_jax.parallel.mesh import Axes
from transformer_jax.train.config import Train

pytestmark = pytest.mark.quick


@dataclass(frozen=True, kw_only=True)
class Oven:
    degrees: int = 180
    minutes: float = 1.5
    mode: Literal["fan", "grill"] = "fan"
    clock: int | None = None
    rates: tuple[float, ...] = (0.1,)
    door: str = "shut"
    light: bool = True


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("degrees", "200", 200),
        ("degrees", "2_000", 2000),
        ("minutes", "2", 2.0),
        ("minutes", "1e-3", 1e-3),
        ("mode", "grill", "grill"),
        ("clock", "none", None),
        ("clock", "3", 3),
        ("rates", "1e-3,2e-3", (1e-3, 2e-3)),
        ("rates", "0.5", (0.5,)),
        ("door", "open", "open"),
        ("light", "false", False),
    ],
)
def test_text_becomes_the_type_of_the_field(name, text, value):
    parsed = parse(name, fields(Oven)[name], text)
    assert parsed == value
    assert type(parsed) is type(value)


@pytest.mark.parametrize(
    ("name", "text", "takes"),
    [
        ("degrees", "hot", "a whole number"),
        ("degrees", "1.5", "a whole number"),
        ("minutes", "long", "a number"),
        ("mode", "steam", "one of fan, grill"),
        ("clock", "noon", "a whole number or none"),
        ("rates", "1,x", "a list, separated by commas, of a number"),
        ("light", "1", "true or false"),
    ],
)
def test_ill_typed_text_is_refused_with_what_it_takes(name, text, takes):
    with pytest.raises(BadInput, match=takes):
        parse(name, fields(Oven)[name], text)


@pytest.mark.parametrize(
    ("name", "value"),
    [("degrees", 1.5), ("degrees", True), ("degrees", "200"), ("rates", [0.1]), ("mode", "steam")],
)
def test_ill_typed_values_are_refused(name, value):
    with pytest.raises(BadInput, match="wrong type"):
        changed(Oven(), "oven", {name: value})


def test_changes_apply_and_unknown_fields_are_refused_with_the_nearest():
    assert changed(Oven(), "oven", {"degrees": 90, "minutes": 2}) == Oven(degrees=90, minutes=2)
    with pytest.raises(BadInput, match=r"'oven.degres': did you mean 'oven.degrees'"):
        changed(Oven(), "oven", {"degres": 90})


@pytest.mark.parametrize(
    ("wrong", "right"),
    [
        ("model.widht", "model.width"),
        ("widht", "model.width"),
        ("lenght", "task.length"),
        ("step", "train.steps"),
    ],
)
def test_the_suggestion_finds_whole_names_and_last_parts(wrong, right):
    known = ["model.width", "model.layers", "task.length", "train.steps", "train.batch"]
    assert f"did you mean {right!r}" in str(unknown_name(wrong, known))


def test_nothing_near_is_told_how_to_name_a_field():
    assert "name a field by its part" in str(unknown_name("xyzzy", ["model.width"]))


def test_differences_name_what_changed():
    old = {"train": {"steps": 1, "batch": 2}, "seed": 0}
    new = {"train": {"steps": 3, "batch": 2}, "seed": 0, "extra": 1}
    assert list(differences(old, new)) == [("extra", None, 1), ("train.steps", 1, 3)]


def test_a_field_of_a_field_is_set_by_its_dotted_name():
    train = Train(steps=1, batch=1)
    assert settable(train)["mesh.fsdp"] is int
    assert changed(train, "train", {"mesh.fsdp": 2, "mesh.data": 3, "batch": 4}) == Train(
        steps=1, batch=4, mesh=Axes(data=3, fsdp=2)
    )
    with pytest.raises(BadInput, match=r"'train.mesh.fspd': did you mean 'train.mesh.fsdp'"):
        changed(train, "train", {"mesh.fspd": 2})
    with pytest.raises(BadInput, match=r"train.mesh.fsdp='two' has the wrong type"):
        changed(train, "train", {"mesh.fsdp": "two"})
