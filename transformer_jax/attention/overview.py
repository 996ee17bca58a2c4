"""The catalogue in words: what `list` shows, and a page of the documentation."""

from __future__ import annotations

import dataclasses
import inspect
import sys
from functools import cache
from typing import Any

from flax import nnx

from transformer_jax.attention import moved
from transformer_jax.attention.catalogue import catalogue, options
from transformer_jax.attention.contract import MODES, Geometry, Mixer
from transformer_jax.errors import BadInput

HEAD = """# The mechanisms

Every mechanism of the catalogue, as its own file describes it: what it is and, set apart, what its
`definition` computes. This page is written by `transformer-jax list --markdown`; a test holds it to the code.

*Time* says how the work on T tokens grows with T, *decode state* how what decoding keeps does, up to
constants. What is not defined is refused with the reason given here, never run silently.

The figures are bytes, at its own options in a layer of width 512 with 8 heads and a length of 1,024 tokens,
in float32: of a sequence's decode state; of what decoding a token reads (parameters, a full state, the token)
and writes; and of what training keeps per token for the backward pass. One function reads them from the
traced program (`transformer_jax/attention/moved.py`); the conformance suite holds them to the compiled one.
What is kept is as JAX 0.10 traces it; another version may keep a little less.
"""

SIZES: dict[str, Any] = {"width": 512, "heads": 8, "length": 1024}


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


def figures(mixer: type[Mixer]) -> dict[str, int] | None:
    """Bytes at `SIZES`: of the state, read and written per token decoded where that is defined, and kept per
    token of training. None where the mechanism needs options that it has no default for."""
    geometry = Geometry(**SIZES, causal=mixer.capability.defined("causal"))
    kind: Any = mixer
    try:
        graph, values = moved.abstract(lambda: kind(geometry, rngs=nnx.Rngs(0)))
    except BadInput:
        return None
    found = {"kept": round(moved.kept_bytes(graph, values, 1, geometry.length) / geometry.length)}
    if geometry.causal and mixer.capability.defined("decoding"):
        found |= dataclasses.asdict(moved.decode_bytes(graph, values))
    return found


@cache
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
    named = ("state", "read", "written", "kept")
    rows = [
        f"| name | family | time in T | decode state | {' | '.join(named)} | paper |",
        "|---|---|---|---|---:|---:|---:|---:|---|",
    ]
    for family, mixers in families.items():
        for mixer in mixers:
            bytes_of = figures(mixer) or {}
            cells = (
                f"[`{mixer.name}`](#{mixer.name})",
                family,
                mixer.time,
                mixer.state or "none",
                *(f"{bytes_of[name]:,}" if name in bytes_of else "" for name in named),
                _link(mixer.paper),
            )
            rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows) + "\n"


def _section(mixer: type[Mixer]) -> str:
    said = entry(mixer)
    lines = [f"### {mixer.name}", "", inspect.cleandoc(mixer.__doc__ or ""), ""]
    definition = getattr(mixer, "definition", None)
    if computed := definition and inspect.getdoc(definition):
        lines += [f"> {line}".rstrip() for line in computed.splitlines()] + [""]
    lines.append(f"- defined for: {', '.join(said['defined for'])}")
    lines += [f"- refused, {mode}: {why}" for mode, why in said["refused"].items()]
    lines += [f"- {mode}: {note}" for mode, note in said["notes"].items()]
    lines.append(f"- a sequence over devices: {said['sequence']}")
    chosen = ", ".join(f"`{name}={default!r}`" for name, default in said["options"].items())
    lines += [f"- options: {chosen}"] if chosen else []
    lines.append(f"- file: `{mixer.__module__.replace('.', '/')}.py`")
    return "\n".join(lines) + "\n"


def _link(paper: str) -> str:
    number = paper.removeprefix("arXiv:")
    return f"[{number}](https://arxiv.org/abs/{number})" if number != paper else paper
