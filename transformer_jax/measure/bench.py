"""Time and memory of variants against length, beside two references that everyone has.

One call measures everything in one process, interleaved, because only ratios within a run can be
believed on a machine that does other things too.
"""

from __future__ import annotations

import json
import platform
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, cast, get_args, get_type_hints

import jax
from rich.console import Console, Group
from rich.table import Table

from transformer_jax.attention import catalogue
from transformer_jax.attention.contract import Geometry, Mode
from transformer_jax.errors import BadInput, unknown
from transformer_jax.growth import exponent
from transformer_jax.measure import programs
from transformer_jax.measure.programs import JAX_NN, TORCH, Program
from transformer_jax.measure.timing import interleaved
from transformer_jax.model.config import Mechanism, Transformer

Row = dict[str, Any]
BYTES = 256
"""Vocabulary of the byte model."""


@dataclass(frozen=True, kw_only=True)
class Bench:
    """What to measure.

    Attributes:
      variants: names of the catalogue, files of a user's own ("my.py", "my.py:fading"), or mechanisms with
        options.
      lengths: T, in tokens.
      what: attention cores (without projections); decoding steps of mixers (with them) after so many tokens
        as `lengths` has; or whole training steps of a byte model.
      batch: B. heads: N. kv_heads: K (default N). head_size: H.
      direction: causal or bidirectional; a byte model predicts the next byte, or else classifies the text.
      dtype: of the streams, or of the model's activations.
      layers: of the byte model, whose width is heads · head_size.
      rounds: samples per measurement; the median counts.
    """

    variants: tuple[str | Mechanism, ...] = ("full", "sliding_window", "linear", "gated_delta_net")
    lengths: tuple[int, ...] = (1024, 2048, 4096)
    what: Literal["attention", "decode", "model"] = "attention"
    batch: int = 1
    heads: int = 4
    kv_heads: int | None = None
    head_size: int = 64
    direction: Literal["causal", "bidirectional"] = "causal"
    dtype: Literal["float32", "bfloat16"] = "float32"
    layers: int = 4
    rounds: int = 5

    def __post_init__(self):
        hints = get_type_hints(type(self))
        for name in ("what", "direction", "dtype"):
            if getattr(self, name) not in get_args(hints[name]):
                raise unknown(f"value of bench.{name}", getattr(self, name), get_args(hints[name]))
        for name in ("batch", "layers", "rounds"):
            if getattr(self, name) < 1:
                raise BadInput(f"bench.{name}={getattr(self, name)} must be at least 1.")
        if not self.lengths or min(self.lengths) < 1:
            raise BadInput("bench.lengths needs at least one length of at least 1 token.")
        if self.what == "decode" and self.direction != "causal":
            raise BadInput("What comes next is decoded: bench.direction must be causal with what=decode.")
        self.geometry(self.lengths[0])  # refuses sizes that do not fit
        named = [
            (v,) if isinstance(v, Mechanism) else map(Mechanism, catalogue.named(v)) for v in self.variants
        ]
        object.__setattr__(self, "variants", tuple(mechanism for some in named for mechanism in some))
        if not self.variants:
            raise BadInput("bench.variants is empty: name at least one variant.")
        for mechanism in self.mechanisms:
            self.admit(mechanism)

    def admit(self, mechanism: Mechanism) -> None:
        """Raises BadInput where a mechanism is undefined for what is to be measured."""
        capability = catalogue.find(mechanism.name).capability
        remedy = ""
        if self.what != "decode":
            other: Mode = "causal" if self.direction == "bidirectional" else "bidirectional"
            remedy = f" Measure it with --direction {other}." if capability.defined(other) else ""
        needed: list[Mode] = [self.direction]
        if self.what == "decode":
            needed.append("decoding")
        for mode in needed:
            try:
                capability.require(mode, mechanism.name)
            except BadInput as refusal:
                raise BadInput(f"{refusal}{remedy}") from None

    def parts(self) -> dict[str, Callable[[Callable[[str], None]], list[Row]]]:
        """What can be measured apart, as a `Measurement` has it: the lengths."""
        return {f"T = {length}": partial(at_length, self, length) for length in self.lengths}

    @property
    def mechanisms(self) -> tuple[Mechanism, ...]:
        """The variants, all of which are mechanisms once this is made."""
        return cast(tuple[Mechanism, ...], self.variants)

    def geometry(self, length: int) -> Geometry:
        return Geometry(
            width=self.heads * self.head_size,
            heads=self.heads,
            kv_heads=self.kv_heads,
            head_size=self.head_size,
            length=length,
            causal=self.direction == "causal",
            dtype=self.dtype,
        )


def bench(config: Bench, *, progress: Callable[[str], None] = lambda line: None) -> list[Row]:
    """Measures and returns rows, one per program and length, then one per program with its slopes.

    A row of kind "measurement" has, per pass (forward, forward_backward; or step): `<pass>_ms`, and
    `<pass>_temporaries` in bytes, None where they cannot be read or the program was `skipped` for its
    size; and `ratios`, of this program's last pass to each reference: `time/jax.nn`, `time/torch`,
    `temporaries/jax.nn`. A row of kind "slope" has the exponents of that pass in T.

    Args:
      progress: is told what is about to be measured.

    Raises:
      BadInput: a variant is unknown, or undefined for this direction or these sizes.
    """
    rows = [row for length in config.lengths for row in at_length(config, length, progress)]
    return rows + _slopes(rows, last_pass(config))


def at_length(config: Bench, length: int, progress: Callable[[str], None]) -> list[Row]:
    """The measurements of all programs at one length."""
    progress(f"T = {length}: compiling")
    rows = [_row(config, length, program) for program in contenders(config, length)]
    runs = {(i, key): run for i, row in enumerate(rows) for key, run in row.pop("run").items()}
    progress(f"T = {length}: {len(runs)} measurements, {config.rounds} rounds")
    for (i, key), seconds in interleaved(runs, config.rounds).items():
        rows[i][f"{key}_ms"] = 1e3 * seconds
    _compare(rows, last_pass(config))
    return rows


def last_pass(config: Bench) -> str:
    """The pass that ratios and slopes are about."""
    return "forward_backward" if config.what == "attention" else "step"


def contenders(config: Bench, length: int) -> Iterable[Program]:
    """The references first, then every variant."""
    device = programs.torch_device()
    if config.what == "attention":
        geometry = config.geometry(length)
        yield programs.jax_nn_core(geometry, config.batch)
        if device:
            yield programs.torch_core(geometry, config.batch, device)
        for mechanism in config.mechanisms:
            yield programs.variant_core(mechanism, geometry, config.batch)
        return
    if config.what == "decode":
        for mechanism in config.mechanisms:  # a cache of twice the length has room for one token more
            yield programs.decode_step(mechanism, config.geometry(2 * length), config.batch, length)
        return
    models = [_byte_model(config, mechanism) for mechanism in config.mechanisms]
    tokens = jax.random.randint(jax.random.key(0), (config.batch, length + 1), 0, BYTES)
    causal = config.direction == "causal"
    if device and causal and config.dtype == "float32" and config.kv_heads in (None, config.heads):
        yield programs.torch_training_step(models[0], vocabulary=BYTES, tokens=tokens, device=device)
    for model in models:
        yield programs.training_step(model, vocabulary=BYTES, tokens=tokens, causal=causal)


def _byte_model(config: Bench, mechanism: Mechanism) -> Transformer:
    return Transformer(
        mixers=(mechanism,),
        layers=config.layers,
        width=config.heads * config.head_size,
        heads=config.heads,
        kv_heads=config.kv_heads,
        compute=config.dtype,
    )


def _row(config: Bench, length: int, program: Program) -> Row:
    passes = ("forward", "forward_backward") if config.what == "attention" else ("step",)
    return {
        "kind": "measurement",
        "what": config.what,
        "part": program.part,
        "name": program.name,
        "length": length,
        "batch": config.batch,
        "heads": config.heads,
        "kv_heads": config.kv_heads or config.heads,
        "head_size": config.head_size,
        "layers": config.layers if config.what == "model" else None,
        "direction": config.direction,
        "dtype": config.dtype,
        **{f"{key}_ms": None for key in passes},
        **{f"{key}_temporaries": program.temporaries.get(key) for key in passes},
        "skipped": program.skipped,
        "device": f"{jax.devices()[0].device_kind} ({platform.machine()})",
        "jax": jax.__version__,
        "run": program.run,
    }


def _compare(rows: list[Row], key: str) -> None:
    """Adds the ratios to the references of the same run."""
    by_name = {row["name"]: row for row in rows}
    for row in rows:
        row["ratios"] = {}
        for label, field, reference in (
            (f"time/{JAX_NN}", f"{key}_ms", JAX_NN),
            (f"time/{TORCH}", f"{key}_ms", TORCH),
            (f"temporaries/{JAX_NN}", f"{key}_temporaries", JAX_NN),
        ):
            mine, theirs = row[field], by_name.get(reference, {}).get(field)
            if mine is not None and theirs:
                row["ratios"][label] = mine / theirs


def _slopes(rows: list[Row], key: str) -> list[Row]:
    """Least-squares slopes of log time and log temporaries against log T."""
    slopes = []
    for name in dict.fromkeys(row["name"] for row in rows):
        slope: Row = {"kind": "slope", "name": name, "pass": key}
        for label, field in (("time", f"{key}_ms"), ("temporaries", f"{key}_temporaries")):
            points = [(row["length"], row[field]) for row in rows if row["name"] == name and row[field]]
            slope[label] = exponent(points)
        if any(slope[label] is not None for label in ("time", "temporaries")):
            slopes.append(slope)
    return slopes


def show(config: Bench, *, as_json: bool = False) -> None:
    """Measures, and prints tables or JSON lines; what is being measured goes to stderr."""
    rows = bench(config, progress=lambda line: print(line, file=sys.stderr, flush=True))
    if as_json:
        print("\n".join(map(json.dumps, rows)))
    else:
        Console().print(render(rows))


def title(of: Mapping[str, Any]) -> str:
    """What was measured and its sizes, from the fields of a `Bench` or of a row."""
    what = {
        "attention": f"{of['direction']} attention",
        "decode": "decoding a token",
        "model": f"{of['layers']}-layer {of['direction']} byte model",
    }[of["what"]]
    return f"{what}, batch {of['batch']}, {of['heads']} heads of {of['head_size']}, {of['dtype']}"


def render(rows: list[Row]) -> Group:
    """The rows as tables for a terminal."""
    measured = [row for row in rows if row["kind"] == "measurement"]
    slopes = [row for row in rows if row["kind"] == "slope"]
    first = measured[0]
    passes = [field.removesuffix("_ms") for field in first if field.endswith("_ms")]
    table = Table(title=f"{title(first)}, on {first['device']}, JAX {first['jax']}")
    table.add_column("T", justify="right")
    table.add_column("variant")
    for key in passes:
        table.add_column(f"{key.replace('_', ' + ')}, ms", justify="right")
    table.add_column("temporaries, MiB", justify="right")
    ratios = list(dict.fromkeys(label for row in measured for label in row["ratios"]))
    for label in ratios:
        table.add_column(label, justify="right")
    for before, row in zip([None, *measured], measured, strict=False):
        if before and before["length"] != row["length"]:
            table.add_section()
        memory = row[f"{passes[-1]}_temporaries"]
        table.add_row(
            str(row["length"]),
            row["name"] + (" (with projections)" if row["part"] == "mixer" else ""),
            *(
                row["skipped"] or _number(row[f"{key}_ms"], ".1f" if key != "step" else ".3g")
                for key in passes
            ),
            _number(memory and memory / 2**20, ".1f"),
            *(_number(row["ratios"].get(label), ".2f") for label in ratios),
        )
    if not slopes:
        return Group(table)
    exponents = Table(title=f"exponents in T of {passes[-1].replace('_', ' + ')}")
    exponents.add_column("variant")
    for label in ("time", "temporaries"):
        exponents.add_column(label, justify="right")
    for row in slopes:
        exponents.add_row(row["name"], _number(row["time"], ".2f"), _number(row["temporaries"], ".2f"))
    return Group(table, exponents)


def _number(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)
