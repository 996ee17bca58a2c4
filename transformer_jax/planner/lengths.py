"""Plans of one model at many lengths on one slice: where is a mechanism faster than full attention?

`python -m transformer_jax.planner.lengths DIR...` prints a table for each model, of several slices, from the
directories of such measurements.
"""

from __future__ import annotations

import dataclasses
import json
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

import jax

from transformer_jax.data.tasks.masked_python_text import MaskedPythonText
from transformer_jax.data.tasks.text_folder import SubwordFolder
from transformer_jax.errors import BadInput
from transformer_jax.growth import below_from
from transformer_jax.model.config import Mechanism, Transformer
from transformer_jax.parallel.mesh import Axes
from transformer_jax.planner import topologies
from transformer_jax.planner.search import Asked, sentence
from transformer_jax.train.config import Train
from transformer_jax.train.run import Run

Row = dict[str, Any]


MODEL = Transformer(
    layers=24,
    width=1024,
    heads=16,
    mlp="swiglu",
    norm="rms",
    positions="rotary",
    compute="bfloat16",
    remat="full",
)


@dataclass(frozen=True, kw_only=True)
class Lengths:
    """What to plan, as a `Measurement` has it.

    Attributes:
      topology: the slice.
      lengths: T, in tokens. tokens: of a step; the batch is tokens / T sequences.
      variants: mechanisms, each of them in every layer of the model.
      causal: a decoder of `vocabulary` subwords; or else an encoder that restores masked bytes.
    """

    topology: str = "v5e:4x4"
    lengths: tuple[int, ...] = (2048, 8192, 32_768, 131_072)
    tokens: int = 2**19
    variants: tuple[str | Mechanism, ...] = ("full",)
    causal: bool = True
    vocabulary: int = 32_000
    model: Transformer = MODEL

    def __post_init__(self):
        topologies.generation(self.topology)
        mixers = (m if isinstance(m, Mechanism) else Mechanism(m) for m in self.variants)
        object.__setattr__(self, "variants", tuple(mixers))
        for length in self.lengths:
            if length < 1 or self.tokens % length:
                raise BadInput(
                    f"measure.tokens={self.tokens} of a step are no whole number of sequences of {length}: "
                    f"choose lengths that divide it."
                )

    def parts(self) -> dict[str, Callable[[Callable[[str], None]], list[Row]]]:
        """The lengths, each planned apart."""
        topologies.prepare()
        return {f"T = {length}": partial(at_length, self, length) for length in self.lengths}

    def run(self, mixer: Mechanism, length: int, chips: int) -> Run:
        """A training run of the model: its sequences are spread over the chips, with the parameters cut as
        well, and where they are fewer than chips, each lies over several."""
        batch = self.tokens // length
        rows = next(n for n in range(min(batch, chips), 0, -1) if batch % n == chips % n == 0)
        decoder = SubwordFolder(length=length, vocabulary=self.vocabulary)
        return Run(
            task=decoder if self.causal else MaskedPythonText(length=length),
            model=dataclasses.replace(self.model, mixers=(mixer,)),
            train=Train(
                steps=1000,
                batch=batch,
                weight_decay=0.01,
                mesh=Axes(data=1, fsdp=rows, sequence=chips // rows),
            ),
        )


def at_length(config: Lengths, length: int, say: Callable[[str], None]) -> list[Row]:
    """A row for each variant, of the form that `bench` gives."""
    rows = []
    for mixer in cast(tuple[Mechanism, ...], config.variants):
        run = config.run(mixer, length, topologies.chips(config.topology))
        made = Asked(run, str(mixer), config.topology).planned()
        say(sentence(made))
        needs = f"needs {made.memory.total / 2**30:.1f} GiB of a chip's {made.limit / 2**30:.2f}"
        rows.append(
            {
                "kind": "measurement",
                "what": "plan",
                "name": str(mixer),
                "length": length,
                "batch": run.train.batch,
                "step_ms": made.seconds * 1e3 if made.fits else None,
                "step_temporaries": made.memory.temporaries,
                "skipped": "" if made.fits else needs,
                "device": f"{config.topology} (planned, uncalibrated)",
                "jax": jax.__version__,
                "plan": made.as_json(),
            }
        )
    return rows


def table(rows: Sequence[Row]) -> str:
    """Markdown: of each slice and mechanism the step and the memory at each length, and the first length from
    which on it is faster than full attention at every one."""
    lengths = sorted({row["length"] for row in rows})
    head = ["slice", "mechanism", *(f"{length // 1024}k" for length in lengths), "faster than full from"]
    lines = [head, [":--", ":--", *("--:" for _ in lengths), "--:"]]
    slices: dict[str, dict[str, dict[int, Row]]] = {}
    for row in rows:
        of = slices.setdefault(row["plan"]["topology"], {})
        of.setdefault(row["name"], {})[row["length"]] = row
    for name, mechanisms in slices.items():
        for mechanism, at in mechanisms.items():
            cells = [cell(at.get(length)) for length in lengths]
            lines.append([name, f"`{mechanism}`", *cells, crossover(at, mechanisms.get("full", {}))])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def cell(row: Row | None) -> str:
    """Milliseconds and GiB of a chip."""
    if row is None:
        return "–"
    needed = f"{row['plan']['needed'] / 2**30:.1f} GiB"
    return f"{row['step_ms']:,.0f} ms, {needed}" if row["step_ms"] else f"does not fit, {needed}"


def crossover(mine: Mapping[int, Row], full: Mapping[int, Row]) -> str:
    """The first length from which on a mechanism is faster at each; it is where only full does not fit."""
    times = lambda rows: {length: row["step_ms"] or math.inf for length, row in rows.items()}
    found = None if mine is full else below_from(times(mine), times(full))
    return "–" if found is None else "never here" if math.isinf(found) else f"{int(found) // 1024}k"


def main(directories: Sequence[str]) -> None:
    experiments: dict[str, list[Row]] = {}
    for folder in map(Path, directories):
        name = json.loads((folder / "experiment.json").read_text())["name"]
        lines = (folder / "measurements.jsonl").read_text().splitlines()
        experiments.setdefault(name, []).extend(map(json.loads, lines))
    print("\n".join(f"`{name}`:\n\n{table(rows)}" for name, rows in experiments.items()), end="")


if __name__ == "__main__":
    main(sys.argv[1:])
