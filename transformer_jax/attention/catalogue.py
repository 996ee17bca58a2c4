"""Every mechanism by name: those of `attention/variants/`, and any that a user defines.

A mechanism enters the catalogue by being a subclass of `Mixer` with a `name`; nothing is registered
by hand.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import pkgutil
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, get_type_hints

from flax import nnx

from transformer_jax.attention import variants
from transformer_jax.attention.contract import Geometry, Mixer
from transformer_jax.errors import BadInput, unknown
from transformer_jax.user_file import load_module


def catalogue() -> dict[str, type[Mixer]]:
    """Every mechanism defined so far, by name, in alphabetical order.

    Raises BadInput where two different classes claim one name.
    """
    for module in pkgutil.iter_modules(variants.__path__):
        importlib.import_module(f"{variants.__name__}.{module.name}")
    found: dict[str, type[Mixer]] = {}
    for mixer in _descendants(Mixer):
        if "name" not in vars(mixer):
            continue
        other = found.setdefault(mixer.name, mixer)
        if (other.__module__, other.__qualname__) != (mixer.__module__, mixer.__qualname__):
            raise BadInput(
                f"Two mechanisms are called {mixer.name!r}: {other.__module__}.{other.__qualname__} and "
                f"{mixer.__module__}.{mixer.__qualname__}; rename one."
            )
        found[mixer.name] = mixer
    return dict(sorted(found.items()))


def find(name: str) -> type[Mixer]:
    """The mechanism of that name. Raises BadInput, with the nearest name, where there is none."""
    known = catalogue()
    if name not in known:
        raise unknown("variant", name, known)
    return known[name]


def options(mixer: type[Mixer]) -> dict[str, tuple[Any, Any]]:
    """The options of a mechanism: name -> (type, default), read from its constructor."""
    hints = get_type_hints(mixer.__init__)
    parameters = list(inspect.signature(mixer.__init__).parameters.values())[2:]
    return {p.name: (hints.get(p.name, Any), p.default) for p in parameters if p.name != "rngs"}


def build(name: str, geometry: Geometry, *, rngs: nnx.Rngs, **chosen: Any) -> Mixer:
    """A mixer of the catalogue. Raises BadInput on an unknown option or an undefined direction."""
    mixer: Any = find(name)
    known = options(mixer)
    for option in chosen:
        if option not in known:
            raise unknown(f"option of {name}", option, known)
    return mixer(geometry, rngs=rngs, **chosen)


def named(text: str) -> tuple[str, ...]:
    """The names that a user's word stands for: one of the catalogue ("full"), those of a Python file
    ("my.py"), or one of these ("my.py:fading"), which are in the catalogue from then on.

    Raises BadInput where it stands for none.
    """
    path, _, name = text.partition(":")
    if not path.endswith(".py"):
        return (find(text).name,)
    found = tuple(mixer.name for mixer in load(path))
    if name and name not in found:
        raise unknown(f"mechanism of {path}", name, found)
    return (name,) if name else found


def file_of(name: str) -> Path | None:
    """The file that defines a user's own mechanism, None for one of the project's."""
    mixer = find(name)
    if mixer.__module__.startswith(f"{variants.__name__}."):
        return None
    source = inspect.getsourcefile(mixer)
    return Path(source).resolve() if source else None


def load(path: str | Path) -> list[type[Mixer]]:
    """The mechanisms that a user's Python file defines. Raises BadInput where it defines none."""
    path = Path(path)
    if not path.is_file():
        raise BadInput(f"There is no file {path}: give a Python file that defines a mechanism.")
    module = _imported(path) or load_module(f"user_{path.stem}", path)
    mine = [
        value
        for value in vars(module).values()
        if inspect.isclass(value)
        and issubclass(value, Mixer)
        and value.__module__ == module.__name__
        and value.name
    ]
    if not mine:
        raise BadInput(f"{path} defines no mechanism: subclass a mixer of an engine and give it a name.")
    return mine


def _imported(path: Path) -> ModuleType | None:
    """The module of that file, where something has imported it under a name of its own: a second copy of its
    mechanisms would claim the same names."""
    for name, module in list(sys.modules.items()):
        file = getattr(module, "__file__", None)
        if file and Path(file).name == path.name and not name.startswith("user_"):
            if Path(file).resolve() == path.resolve():
                return module
    return None


def _descendants(parent: type[Mixer]) -> Iterator[type[Mixer]]:
    for child in parent.__subclasses__():
        yield child
        yield from _descendants(child)
