"""From sums to metrics, and the record of them: JSON lines, on a disk with TensorBoard files beside."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tensorboardX import SummaryWriter

from transformer_jax.store import place, remote, write_text

METRICS = "metrics.jsonl"
Metrics = dict[str, float]
LOWER_IS_BETTER = ("bits_per_byte", "perplexity", "squared_error", "loss")
NOTHING = {"loss": 0.0, "correct": 0.0, "weight": 0.0}
"""The sums over no target."""


def of_sums(sums: Mapping[str, float], metric: str) -> Metrics:
    """loss (nats per target), accuracy, and a metric that follows: bits_per_byte or perplexity.

    A regression has its squared_error alone, which is its loss.
    """
    weight = sums["weight"] if sums["weight"] > 0 else 1.0
    loss, accuracy = sums["loss"] / weight, sums["correct"] / weight
    if metric == "squared_error":
        return {"loss": loss, "squared_error": loss}
    of_loss = {"bits_per_byte": loss / math.log(2), "perplexity": math.exp(min(loss, 700.0))}
    return {"loss": loss, "accuracy": accuracy} | ({metric: of_loss[metric]} if metric in of_loss else {})


def reached(metrics: Mapping[str, float], metric: str, goal: float) -> bool:
    """Whether `metric` is as good as `goal`."""
    return metrics[metric] <= goal if metric in LOWER_IS_BETTER else metrics[metric] >= goal


class Log:
    """The metrics of one run directory, appended line by line.

    Opening it drops what a continued run will write again: lines past `step`, lines of the final test,
    and a last line that a kill has torn.
    """

    def __init__(self, out: Path, *, step: int):
        self.path = out / METRICS
        self.kept = [json.dumps(line) + "\n" for line in read_metrics(out) if _stays(line, step)]
        write_text(self.path, "".join(self.kept))
        # An object cannot be appended to: there the lines are kept and written whole, with each checkpoint.
        self.file = None if remote(out) else self.path.open("a", buffering=1)
        self.board = None if remote(out) else SummaryWriter(str(out / "tensorboard"), purge_step=step + 1)

    def write(self, step: int, split: str, metrics: Mapping[str, Any]) -> None:
        line = json.dumps({"step": step, "split": split, **metrics}, allow_nan=False) + "\n"
        if self.file is None:
            self.kept.append(line)
            return
        self.file.write(line)
        for name, value in metrics.items():
            self.board.add_scalar(f"{split}/{name}", value, step)

    def flush(self) -> None:
        if self.file is None:
            write_text(self.path, "".join(self.kept))

    def close(self) -> None:
        self.flush()
        if self.file is not None:
            self.file.close()
            self.board.close()


def read_metrics(out: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl that are whole."""
    path = place(out) / METRICS
    if not path.exists():
        return []
    found = []
    for text in path.read_text().splitlines():
        try:
            found.append(json.loads(text))
        except ValueError:  # torn by a kill
            continue
    return found


def _stays(line: Mapping[str, Any], step: int) -> bool:
    return line["step"] <= step and not line["split"].startswith("test")
