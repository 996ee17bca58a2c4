"""The catalogue in words: what `list` shows, and a page of the documentation."""

from __future__ import annotations

import inspect
import sys
from typing import Any

from transformer_jax.attention.catalogue import catalogue, options
from transformer_jax.attention.contract import MODES, Mixer

HEAD = """# The mechanisms

Every mechanism of the catalogue, as its own file describes it. This page is written by
`transformer-jax list --markdown`; a test holds it to the code.

*Time* says how the work on T tokens grows with T, *decode state* how what decoding keeps does, up to
constants. What is not defined is refused with the reason given here, never run silently.
"""


def entry(mixer: type[Mixer]) -> dict[str, Any]:
    """What the catalogue knows of a mechanism, as JSON values."""
    capability = mixer.capability
    return {
        "kind": "variant",
        "name": mixer.name,
        "about": _about(mixer),
        "family": mixer.family,
        "paper": mixer.paper,
        "time": mixer.time,
        "state": mixer.state,
        "defined for": [mode for mode in MODES if capability.defined(mode)],
        "refused": dict(capability.refused),
        "notes": dict(capability.notes),
        "sequence": capability.sequence,
        "options": {name: default for name, (_, default) in options(mixer).items()},
    }


def _about(mixer: type[Mixer]) -> str:
    """What it computes, in a sentence: that at the head of its file, or, of a user's own, of its class."""
    source = sys.modules[mixer.__module__] if _ours(mixer) else mixer
    return " ".join(inspect.cleandoc(source.__doc__ or "").partition("\n\n")[0].split())


def _ours(mixer: type[Mixer]) -> bool:
    return mixer.__module__.startswith(f"{__package__}.variants.")


def page() -> str:
    """The catalogue in Markdown, by family."""
    families: dict[str, list[type[Mixer]]] = {}
    for mixer in catalogue().values():
        if _ours(mixer):
            families.setdefault(mixer.family, []).append(mixer)
    parts = [HEAD, _table(families)]
    for family, mixers in families.items():
        parts.append(f"## {family[:1].upper()}{family[1:]}\n")
        parts += [_section(mixer) for mixer in mixers]
    return "\n".join(parts)


def _table(families: dict[str, list[type[Mixer]]]) -> str:
    rows = ["| name | family | time in T | decode state | paper |", "|---|---|---|---|---|"]
    for family, mixers in families.items():
        for mixer in mixers:
            cells = (
                f"[`{mixer.name}`](#{mixer.name})",
                family,
                mixer.time,
                mixer.state or "none",
                _link(mixer.paper),
            )
            rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows) + "\n"


def _section(mixer: type[Mixer]) -> str:
    said = entry(mixer)
    lines = [f"### {mixer.name}", "", inspect.cleandoc(mixer.__doc__ or ""), ""]
    lines.append(f"- defined for: {', '.join(said['defined for'])}")
    lines += [f"- refused, {mode}: {why}" for mode, why in said["refused"].items()]
    lines += [f"- {mode}: {note}" for mode, note in said["notes"].items()]
    chosen = ", ".join(f"`{name}={default!r}`" for name, default in said["options"].items())
    lines += [f"- options: {chosen}"] if chosen else []
    lines.append(f"- file: `{mixer.__module__.replace('.', '/')}.py`")
    return "\n".join(lines) + "\n"


def _link(paper: str) -> str:
    number = paper.removeprefix("arXiv:")
    return f"[{number}](https://arxiv.org/abs/{number})" if number != paper else paper
