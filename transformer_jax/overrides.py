"""Changing a configuration by name: typed by the dataclass itself, refused with the nearest right name."""

from __future__ import annotations

import dataclasses
import difflib
import math
import types
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from transformer_jax.errors import BadInput, unknown


def fields(owner: Any) -> dict[str, Any]:
    """The fields of a dataclass and their types."""
    hints = get_type_hints(owner if isinstance(owner, type) else type(owner))
    return {field.name: hints[field.name] for field in dataclasses.fields(owner) if field.init}


def settable(owner: Any) -> dict[str, Any]:
    """The fields of a dataclass and, by dotted name, those of dataclasses in it; and their types."""
    found: dict[str, Any] = {}
    for name, kind in fields(owner).items():
        inner = settable(kind) if isinstance(kind, type) and dataclasses.is_dataclass(kind) else {"": kind}
        found |= {f"{name}.{field}".rstrip("."): each for field, each in inner.items()}
    return found


def changed(owner: Any, part: str, changes: Mapping[str, Any]) -> Any:
    """`owner` with `changes`, by name or dotted name; `part` is what the user calls it ("model").

    Raises BadInput on a field that is not there and on a value of another type.
    """
    known = fields(owner)
    inner: dict[str, dict[str, Any]] = {}
    for name, value in changes.items():
        head, _, tail = name.partition(".")
        if tail and head in known and dataclasses.is_dataclass(known[head]):
            inner.setdefault(head, {})[tail] = value
        elif name not in known:
            raise unknown("override", f"{part}.{name}", [f"{part}.{field}" for field in known])
        else:
            require(f"{part}.{name}", known[name], value)
    changes = {name: value for name, value in changes.items() if name in known}
    changes |= {name: changed(getattr(owner, name), f"{part}.{name}", some) for name, some in inner.items()}
    return dataclasses.replace(owner, **changes) if changes else owner


def listed(owner: Any, part: str = "") -> list[str]:
    """Each field of a dataclass as it is set: its name on the command line, its value and what it takes; what
    only Python can write is left out."""
    lines = []
    for field in dataclasses.fields(owner):
        if not field.init or dataclasses.is_dataclass(fields(owner)[field.name]):
            continue
        value = getattr(owner, field.name, field.default)
        if value is dataclasses.MISSING:
            factory = field.default_factory
            value = factory() if factory is not dataclasses.MISSING else dataclasses.MISSING
        said = "(must be given)" if value is dataclasses.MISSING else written(value)
        name = f"{part}.{field.name}" if part else field.name
        lines.append(f"--{name} {said}  ({describe(fields(owner)[field.name])})")
    return lines


def written(value: Any) -> str:
    """A value as the command line takes it."""
    if isinstance(value, tuple):
        return ",".join(map(written, value)) or "''"
    if value is None:
        return "none"
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:g}" if isinstance(value, float) else str(value) or "''"


def unknown_name(name: str, known: Iterable[str]) -> BadInput:
    """The error for an override that is not there, with the nearest by its whole name or its last part."""
    known = list(known)
    tails = {full.rpartition(".")[2]: full for full in reversed(known)}  # of two with the same, the first
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.7)
    close += [tails[tail] for tail in difflib.get_close_matches(name.rpartition(".")[2], tails, n=1)]
    part = name.partition(".")[0]
    siblings = [full for full in known if full.startswith(f"{part}.")]
    hint = "name a field by its part, such as model.width; --settings shows them all."
    if name == part and siblings:  # --task copy
        hint = f"it has no value of its own; set one of {', '.join(siblings)}."
    elif close:
        hint = f"did you mean {close[0]!r}?"
    elif siblings:
        hint = f"choose from {', '.join(siblings)}."
    return BadInput(f"Unknown override {name!r}: {hint}")


def check_fields(owner: Any, part: str) -> None:
    """Raises BadInput where a field of a dataclass is not of its annotated type, or none of its choices."""
    for name, kind in fields(owner).items():
        value = getattr(owner, name)
        if get_origin(kind) is Literal and value not in get_args(kind):
            raise unknown(f"value of {part}.{name}", value, get_args(kind))
        require(f"{part}.{name}", kind, value)


def require(name: str, kind: Any, value: Any) -> None:
    """Raises BadInput where `value` is not of the annotated type `kind`."""
    if not _is(kind, value):
        raise BadInput(f"{name}={value!r} has the wrong type: it takes {describe(kind)}.")


def parse(name: str, kind: Any, text: str) -> Any:
    """The value that `text` from a command line stands for. Raises BadInput where it stands for none."""
    for parsed in _readings(kind, text):
        if _is(kind, parsed):
            return parsed
    raise BadInput(f"{name}={text} has the wrong type: it takes {describe(kind)}.")


def describe(kind: Any) -> str:
    """A type in words."""
    if kind is Any:
        return "any value"
    if kind is type(None):
        return "none"
    if kind in (int, float, bool, str):
        return {int: "a whole number", float: "a number", bool: "true or false", str: "text"}[kind]
    if get_origin(kind) is Literal:
        return "one of " + ", ".join(map(str, get_args(kind)))
    if get_origin(kind) in (Union, types.UnionType):
        # What only Python can write, such as a dataclass, is not offered.
        members = [m for m in get_args(kind) if not dataclasses.is_dataclass(m)]
        return " or ".join(map(describe, members))
    if get_origin(kind) is tuple:
        return f"a list, separated by commas, of {describe(get_args(kind)[0])}"
    return getattr(kind, "__name__", str(kind))


def _is(kind: Any, value: Any) -> bool:
    if kind is Any:
        return True
    if kind is float:
        return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if kind is int:
        return isinstance(value, int) and not isinstance(value, bool)
    origin = get_origin(kind)
    if origin is Literal:
        return value in get_args(kind)
    if origin in (Union, types.UnionType):
        return any(_is(member, value) for member in get_args(kind))
    if origin is tuple:
        members = get_args(kind)
        if not isinstance(value, tuple):
            return False
        if members[1:] == (...,):
            return all(_is(members[0], item) for item in value)
        return len(members) == len(value) and all(map(_is, members, value))
    return isinstance(value, origin or kind)


def _readings(kind: Any, text: str) -> Iterable[Any]:
    """What `text` might mean where `kind` is asked for, the likeliest first."""
    if get_origin(kind) in (Union, types.UnionType):
        members = get_args(kind)
        for member in sorted(members, key=lambda m: m is str):
            yield from _readings(member, text)
    elif get_origin(kind) is Literal:
        yield from (option for option in get_args(kind) if str(option) == text)
    elif get_origin(kind) is tuple:
        item = get_args(kind)[0]
        parts = [part.strip() for part in text.split(",") if part.strip()]
        yield tuple(next(iter(_readings(item, part)), None) for part in parts)
    elif kind is type(None):
        if text.lower() == "none":
            yield None
    elif kind is bool:
        if text.lower() in ("true", "false"):
            yield text.lower() == "true"
    elif kind in (int, float):
        try:
            yield kind(text)
        except ValueError:
            return
    elif kind in (str, Any):
        yield text


def differences(old: Any, new: Any, name: str = "") -> Iterator[tuple[str, Any, Any]]:
    """(dotted name, old value, new value) wherever two resolved configurations differ."""
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        for key in sorted({*old, *new}):
            yield from differences(old.get(key), new.get(key), f"{name}.{key}".lstrip("."))
    elif old != new:
        yield name, old, new
