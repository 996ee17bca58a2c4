"""What a person sees while a run trains: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Protocol

from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from transformer_jax.parallel.group import first


class Watcher(Protocol):
    """Is told what happens in a run."""

    def start(self, label: str, steps: int) -> None: ...

    def moved(self, step: int, loss: float, steps_per_s: float, tokens_per_s: float) -> None:
        """After each dispatch."""

    def measured(self, step: int, split: str, metrics: Mapping[str, float]) -> None:
        """With each record in metrics.jsonl."""

    def say(self, sentence: str) -> None: ...

    def close(self) -> None: ...


class Silent:
    """Says only what must not be missed, on standard error."""

    def start(self, label, steps):
        pass

    def moved(self, step, loss, steps_per_s, tokens_per_s):
        pass

    def measured(self, step, split, metrics):
        pass

    def say(self, sentence):
        print(sentence, file=sys.stderr, flush=True)

    def close(self):
        pass


class Lines(Silent):
    """One line per record."""

    def start(self, label, steps):
        self.label, self.steps = f"{label}  " if label else "", steps

    def measured(self, step, split, metrics):
        shown = "  ".join(
            f"{name} {metrics[name]:.4f}"
            for name in ("loss", "accuracy", "bits_per_byte", "perplexity", "squared_error")
            if name in metrics
        )
        line = f"{self.label}step {step}/{self.steps}  {split}  {shown}"
        if "steps_per_s" in metrics:
            left = (self.steps - step) / max(metrics["steps_per_s"], 1e-9)
            speed = f"{metrics['steps_per_s']:.3g} steps/s  {short(metrics['tokens_per_s'])} tokens/s"
            line += f"  {speed}  {clock(left)} left"
        print(line, flush=True)

    def say(self, sentence):
        print(f"{self.label}{sentence}", flush=True)


class Bar(Silent):
    """A bar with loss, speed and remaining time."""

    def start(self, label, steps):
        self.bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TaskProgressColumn(),
            TextColumn("{task.completed}/{task.total}  {task.fields[shown]}"),
            TimeRemainingColumn(),
        )
        self.task = self.bar.add_task(label or "train", total=steps, shown="compiling")
        self.best = ""
        self.bar.start()

    def moved(self, step, loss, steps_per_s, tokens_per_s):
        speed = f"{steps_per_s:.3g} steps/s  {short(tokens_per_s)} tokens/s" if steps_per_s else ""
        self.bar.update(self.task, completed=step, shown=f"loss {loss:.4f}  {speed}  {self.best}")

    def measured(self, step, split, metrics):
        if split != "train":
            shown = ("bits_per_byte", "perplexity", "squared_error", "accuracy")
            name = next(name for name in shown if name in metrics)
            self.best = f"{split} {name.replace('_', ' ')} {metrics[name]:.4f}"

    def say(self, sentence):
        self.bar.console.print(sentence, highlight=False, markup=False)

    def close(self):
        self.bar.stop()


def watcher() -> Watcher:
    """The one that fits where standard output goes; of several processes the first one speaks."""
    if not first():
        return Silent()
    return Bar() if sys.stdout.isatty() else Lines()


def short(number: float) -> str:
    """1234567 -> "1.23M"."""
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:.3g}{letter}"
    return f"{number:.3g}"


def clock(seconds: float) -> str:
    """Seconds as minutes and seconds, with hours where there are some."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
