"""What a directory of results holds, read from its files and nothing else."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from transformer_jax.errors import BadInput
from transformer_jax.store import place

Status = Literal["finished", "solved", "diverged", "failed", "unfinished"]
STATUSES: tuple[Status, ...] = ("solved", "finished", "diverged", "failed", "unfinished")
RUNS = "runs.jsonl"
"""The runs of kept results, a line each, in the place of their directories."""
LOWER_IS_BETTER = ("loss", "bits_per_byte", "perplexity", "squared_error")


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One run of a sweep: a variant, a learning rate, a seed. `path` is its directory in the results.

    `config` is its config.json: settings, versions, device. `kept` is its line where the results are kept.
    """

    label: str
    learning_rate: float
    seed: int
    root: Path
    path: str
    status: Status
    result: dict[str, Any]
    config: dict[str, Any]
    kept: dict[str, Any] | None = None
    weight_decay: float | None = None
    """None in records from before it could be tuned."""

    @cached_property
    def curve(self) -> list[dict[str, Any]]:
        """The lines of metrics.jsonl; what a kill left half written is dropped."""
        if self.kept is not None:
            return self.kept["curve"]
        path = self.root / self.path / "metrics.jsonl"
        lines = []
        for line in path.read_text().splitlines() if path.is_file() else ():
            try:
                lines.append(json.loads(line))
            except json.JSONDecodeError:
                continue
        return lines

    @property
    def date(self) -> str | None:
        """The day on which it ended, as 2026-11-25, in UTC; None where it has not."""
        if self.kept is not None:
            return self.kept["date"]
        if "date" in self.result or not self.result:
            return self.result.get("date")
        for name in ("result.json", "failed.json"):  # of a run that did not say
            if (file := self.root / self.path / name).is_file():
                return datetime.fromtimestamp(file.stat().st_mtime, UTC).date().isoformat()
        return None

    @property
    def done(self) -> bool:
        return self.status in ("finished", "solved")

    def score(self, split: str, metric: str) -> float | None:
        """The metric on a split; None where the run has none, or none that is finite."""
        value = self.result.get("metrics", {}).get(split, {}).get(metric)
        return value if self.done and value is not None and math.isfinite(value) else None


@dataclass(frozen=True, kw_only=True)
class Results:
    """A sweep: what its experiment.json says, and its cells."""

    directory: Path
    experiment: dict[str, Any]
    cells: tuple[Cell, ...]
    kept: bool = False
    """Whether they are in the compact form that a repository holds."""

    @property
    def metric(self) -> str:
        return self.experiment["metric"]

    @property
    def higher_is_better(self) -> bool:
        return self.metric not in LOWER_IS_BETTER

    @property
    def labels(self) -> list[str]:
        return [variant["label"] for variant in self.experiment["variants"]]

    def of(self, label: str) -> list[Cell]:
        return [cell for cell in self.cells if cell.label == label]

    @property
    def tests(self) -> list[str]:
        """The named test sets ("test/<name>"), by number where the names are numbers."""
        names = {s for c in self.cells for s in c.result.get("metrics", {}) if s.startswith("test/")}
        return sorted(names, key=lambda name: (length_of(name) or math.inf, name))

    @property
    def baselines(self) -> dict[str, float]:
        return next((c.result["baselines"] for c in self.cells if c.result.get("baselines")), {})

    def versions(self) -> set[tuple[tuple[str, str], ...]]:
        """Every set of library versions that its runs had."""
        runs = [cell.config.get("versions") for cell in self.cells]
        found = [versions for versions in runs if versions] or [self.experiment.get("versions", {})]
        return {tuple(sorted((str(k), str(v)) for k, v in versions.items())) for versions in found}

    def dates(self) -> list[str]:
        """The first and the last day on which a run ended, or the only one."""
        days = sorted({cell.date for cell in self.cells if cell.date})
        return days[:1] + days[1:][-1:]

    def devices(self) -> list[str]:
        """What they ran on, in words."""
        return sorted(
            {device_in_words(cell.config["device"]) for cell in self.cells if cell.config.get("device")}
        )


def length_of(test: str) -> int | None:
    """The sequence length that a test set is named after, None where it is named otherwise."""
    name = test.removeprefix("test/")
    return int(name) if name.isdecimal() else None


def read(directory: Path) -> Results:
    """The results in a directory that `run` wrote.

    Raises BadInput where there are none, or none readable.
    """
    path = place(directory) / "experiment.json"
    if not path.is_file():
        raise BadInput(
            f"{directory} holds no results (no experiment.json): give the directory that `run` wrote, "
            f"such as runs/quickstart-smoke."
        )
    experiment = _json(path)
    missing = {"title", "metric", "variants", "cells"} - set(experiment)
    if missing:
        raise BadInput(
            f"{path} lacks {', '.join(sorted(missing))}: run the experiment again into a new directory."
        )
    kept = _kept(place(directory))
    cells = tuple(_cell(place(directory), entry, kept) for entry in experiment["cells"])
    if not any(cell.result for cell in cells):
        raise BadInput(f"{directory} has no finished run yet: let `run` finish at least one of {len(cells)}.")
    return Results(directory=place(directory), experiment=experiment, cells=cells, kept=kept is not None)


def differing_versions(results: Iterable[Results]) -> dict[str, list[str]]:
    """library -> its versions, for every library of which the runs had more than one."""
    seen: dict[str, set[str]] = {}
    for one in results:
        for versions in one.versions():
            for library, version in versions:
                seen.setdefault(library, set()).add(version)
    return {library: sorted(found) for library, found in sorted(seen.items()) if len(found) > 1}


def _kept(root: Path) -> dict[str, dict[str, Any]] | None:
    """directory -> line of runs.jsonl; None where the results are those that `run` wrote."""
    path = root / RUNS
    if not path.is_file():
        return None
    try:
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        return {line["directory"]: line for line in lines}
    except (ValueError, KeyError, TypeError):
        raise BadInput(f"{path} is not readable: keep the results again, with report --keep.") from None


def _cell(root: Path, entry: dict[str, Any], kept: Mapping[str, dict[str, Any]] | None) -> Cell:
    directory, line = root / entry["directory"], None
    if kept is None:
        result = _json(directory / "result.json") or _json(directory / "failed.json")
        config = _json(directory / "config.json")
    else:
        line = kept.get(entry["directory"], {"result": {}, "config": {}, "curve": [], "date": None})
        result, config = line["result"], line["config"]
    return Cell(
        label=entry["label"],
        learning_rate=entry["learning_rate"],
        weight_decay=entry.get("weight_decay"),
        seed=entry["seed"],
        root=root,
        path=entry["directory"],
        status=result.get("status", "unfinished"),
        result=result,
        config=config,
        kept=line,
    )


def device_in_words(device: dict[str, Any]) -> str:
    if device["platform"] == "cpu":
        return f"{device['cores']} CPU core{'s' if device['cores'] != 1 else ''}"
    return f"{device['count']} × {device['kind']}"


def _json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        return json.loads(path.read_text())
    except (json.JSONDecodeError, UnicodeDecodeError):
        raise BadInput(f"{path} is not readable JSON: remove it and run the experiment again.") from None
