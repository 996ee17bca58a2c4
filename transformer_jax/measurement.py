"""Runs a `Measurement`: part after part, into a directory as a sweep's; finished parts are kept."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shlex
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import jax

from transformer_jax.errors import BadInput
from transformer_jax.experiment import Measurement
from transformer_jax.measure.bench import Bench, title
from transformer_jax.store import write_text
from transformer_jax.train.run import device, versions, write_json

Row = dict[str, Any]
RECORD, ROWS = "experiment.json", "measurements.jsonl"
PART = "of_part"
"""Of a row: which part gave it. The rows of `bench` have a "part" of their own."""


def measure(
    measurement: Measurement,
    out: Path,
    *,
    about: Mapping[str, Any],
    say: Callable[[str], None] = print,
) -> list[Row]:
    """The rows of every part, those of an earlier call with the same settings included.

    Args:
      measurement: at its scale, with the command line's overrides.
      out: where experiment.json and measurements.jsonl go.
      about: what the report shows of it: name, scale, doc, command.
      say: where progress goes, a sentence at a time.

    Raises BadInput where `out` holds something else, and with several processes.
    """
    if jax.process_count() > 1:
        raise BadInput("A measurement is of one process: start it without --processes.")
    record = {**about, **describe(measurement)}
    rows = _earlier(out, record)
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / RECORD, record)
    parts = measurement.measure.parts()
    for part, run in parts.items():
        if any(row[PART] == part for row in rows):
            say(f"{part}: kept")
            continue
        rows += [{PART: part, **row} for row in run(say)]
        write_text(out / ROWS, "".join(f"{json.dumps(row)}\n" for row in rows))
    return rows


def of_bench(config: Bench, out: Path, words: Sequence[str]) -> list[Row]:
    """The rows of `bench`, in a directory as an experiment's: they are continued, kept and reported as those.

    `words`: what followed `bench` on the command line. Raises BadInput as `measure`.
    """
    name = title(vars(config))
    chosen = Measurement(title=f"{name[:1].upper()}{name[1:]}", measure=config)
    command = shlex.join(["transformer-jax", "bench", *words, "--out", str(out)])
    return measure(
        chosen, out, about={"name": "bench", "scale": "", "doc": Bench.__doc__, "command": command}
    )


def describe(measurement: Measurement) -> dict[str, Any]:
    """What the report needs to know, as JSON values."""
    settings = json.loads(json.dumps(dataclasses.asdict(measurement.measure)))
    text = json.dumps([type(measurement.measure).__name__, settings], sort_keys=True)
    return {
        "kind": "measurement",
        "title": measurement.title,
        "claim": measurement.claim,
        "digest": hashlib.sha256(text.encode()).hexdigest()[:20],
        "settings": settings,
        "published": {what: dataclasses.asdict(table) for what, table in measurement.published.items()},
        "versions": versions(),
        "device": device(),
        "date": datetime.now(UTC).date().isoformat(),
    }


def _earlier(out: Path, record: Mapping[str, Any]) -> list[Row]:
    """The rows that `out` has of the same measurement on the same kind of device."""
    try:
        if not out.exists() or not any(out.iterdir()):
            return []
        old = json.loads((out / RECORD).read_text())
        for key, what in (("digest", "with other settings"), ("device", "on another device")):
            if old[key] != record[key]:
                raise BadInput(f"{out} holds a measurement {what}: choose another --out.")
        lines = (out / ROWS).read_text().splitlines() if (out / ROWS).is_file() else []
        rows = [json.loads(line) for line in lines]
        return [row for row in rows if row[PART]]
    except (OSError, ValueError, KeyError) as error:
        if isinstance(error, BadInput):
            raise
        raise BadInput(f"{out} holds something else than a measurement: choose another --out.") from None
