"""The compact form of results, fit for a repository: records and thinned curves, no checkpoints.

    NAME/experiment.json   what was asked, as the run wrote it
    NAME/runs.jsonl        a line for each run that ended: versions, device, date, result, curve
    NAME/bench.jsonl       and other records in JSON lines, where there are some

Of a measurement there are experiment.json and measurements.jsonl.

No path from the root of a disk stays in it. `report NAME` computes everything from these files.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from transformer_jax.errors import BadInput
from transformer_jax.report.measured import ROWS, Measured
from transformer_jax.report.results import RUNS, Cell, Results
from transformer_jax.store import absolute, place, write_text

POINTS = 40
"""Of a run's validation curve, at most so many."""

_PATH = re.compile(r"(?<![\w.~:/)\]<])/(?:[^\s/'\":;,()]+/)+[^\s/'\":;,()]*")


def keep(results: Results | Measured, folder: Path) -> Path:
    """Writes the compact form of `results` into `folder` and returns it; what it kept before is replaced.

    Raises BadInput where `folder` holds anything else or cannot be written.
    """
    folder = place(folder)
    if absolute(folder) == absolute(results.directory):
        raise BadInput(f"{folder} holds the results that are to be kept: give --keep another directory.")
    if folder.exists() and not folder.is_dir():
        raise BadInput(f"Cannot keep results in {folder}, for it is a file: give --keep another directory.")
    kind = RUNS if isinstance(results, Results) else ROWS
    if folder.exists() and any(folder.iterdir()) and not (folder / kind).is_file():
        raise BadInput(f"{folder} holds something else (no {kind}): give --keep a new directory.")
    clean, kept = _cleaner(results.directory), {} if isinstance(results, Results) else {"kept": True}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        record = json.dumps(clean(results.experiment | kept), indent=1, allow_nan=False)
        write_text(folder / "experiment.json", record + "\n")
        if isinstance(results, Results):
            runs = [_line(cell, results) for cell in results.cells if cell.result]
            write_text(folder / RUNS, "".join(_compact(clean(run)) for run in runs))
        for other in sorted(results.directory.glob("*.jsonl")):
            if other.name != RUNS:
                lines = other.read_text().splitlines()
                write_text(folder / other.name, "".join(_compact(clean(json.loads(line))) for line in lines))
    except OSError as error:
        raise BadInput(f"Cannot keep results in {folder} ({error.strerror}): give --keep another.") from None
    return folder


def _line(cell: Cell, results: Results) -> dict[str, Any]:
    """A run in one object. Its settings are not in it: experiment.json has those of its variant."""
    return {
        "directory": cell.path,
        "config": {name: value for name, value in cell.config.items() if name not in ("config", "command")},
        "date": cell.date,
        "result": {name: value for name, value in cell.result.items() if name != "traceback"},
        "curve": _thinned(cell.curve, results.metric),
    }


def _thinned(curve: list[dict[str, Any]], metric: str) -> list[dict[str, Any]]:
    """The validation curve with at most POINTS points, evenly spread, its last one among them."""
    points = [line for line in curve if line.get("split") == "validation" and metric in line]
    stride = -(-len(points) // POINTS) or 1
    return [
        {"step": line["step"], "split": "validation", metric: float(f"{line[metric]:.5g}")}
        for line in reversed(points[::-1][::stride])
    ]


def _cleaner(directory: Path) -> Callable[[Any], Any]:
    """Makes every path in a JSON value relative: to the results, to the working directory, else its name."""
    roots = (absolute(directory), Path.cwd())

    def relative(match: re.Match[str]) -> str:
        path = Path(match[0])
        root = next((root for root in roots if path.is_relative_to(root)), None)
        return path.name if root in (None, path) else str(path.relative_to(root))

    def clean(value: Any) -> Any:
        if isinstance(value, dict):
            return {_PATH.sub(relative, name): clean(item) for name, item in value.items()}
        if isinstance(value, list):
            return [clean(item) for item in value]
        return _PATH.sub(relative, value) if isinstance(value, str) else value

    return clean


def _compact(value: Any) -> str:
    return json.dumps(value, allow_nan=False, separators=(",", ":")) + "\n"
