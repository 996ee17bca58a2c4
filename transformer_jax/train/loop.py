"""Training a run to its end, from wherever an earlier call left it."""

from __future__ import annotations

import json
import math
import signal
import time
from collections import deque
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np

from transformer_jax.checkpoint import Checkpoints
from transformer_jax.data import pipeline
from transformer_jax.data.task import Split, Task
from transformer_jax.overrides import differences
from transformer_jax.parallel.group import agreed, first, grace
from transformer_jax.parallel.rows import rows_here
from transformer_jax.store import place
from transformer_jax.train import evaluation
from transformer_jax.train import metrics as measures
from transformer_jax.train.clock import Clock
from transformer_jax.train.devices import mesh_of, rows, stacked
from transformer_jax.train.feed import Feed
from transformer_jax.train.metrics import Log, Metrics
from transformer_jax.train.profile import Profile
from transformer_jax.train.progress import Watcher, watcher
from transformer_jax.train.run import Run, alone, build_model, claim, versions, write_json
from transformer_jax.train.signals import Interrupted, Signals
from transformer_jax.train.state import dismantle
from transformer_jax.train.step import executions, program, started

RESULT = "result.json"
Cost = Callable[..., dict[str, Any]] | None
DISPATCH_SECONDS = 0.1  # of work per call: the host's share is then lost in it, and a signal soon heard


def train(
    run: Run,
    out: Path,
    *,
    data: Path,
    label: str = "",
    command: str | None = None,
    progress: Watcher | None = None,
    cost: Cost = None,
) -> dict[str, Any]:
    """Trains `run` in the directory `out` and returns its result, also in out/result.json.

    Continues where an earlier call stopped, bit by bit as if it never had; returns at once where the
    result is there. SIGTERM and SIGINT save a checkpoint and raise SystemExit (143, 130). Of several
    processes all call it; the first writes, and a signal to one stops all.

    Args:
      out, data: directories, of the run and of the finite splits; either may be a gs:// URL.
      label: what the run is called in lines and reports. command: the command that started it.
      progress: what a person sees; None: a bar on a terminal, lines elsewhere.
      cost: (training program, *arguments of its last call) -> what the result is to say of its cost.

    Raises:
      BadInput: `out` cannot be written, belongs to another run or is being written by another process; the
        run does not divide over its mesh; the grace that the job was told is no number.
    """
    out, data = place(out), place(data)
    mesh_of(run)
    grace()  # what is malformed is refused now, not at the first save
    record = agreed(lambda: claim(run, out, label=label, command=command))
    if (found := agreed(lambda: finished(out))) is not None:
        return found
    watch = progress or watcher()
    watch.start(record["label"], run.train.steps)
    try:
        with alone(out) if first() else nullcontext():
            training = Training(run, out, data=data, watch=watch, record=record)
            training.cost = cost
            try:
                return training.result()
            finally:
                training.close()
    finally:
        watch.close()


def finished(out: Path) -> dict[str, Any] | None:
    """The result of a run that has one."""
    return json.loads((out / RESULT).read_text()) if (out / RESULT).exists() else None


class Diverged(Exception):
    """The loss or the gradient of a step is not finite."""


class Training:
    """One run being trained: where it stands, and what it writes."""

    def __init__(self, run: Run, out: Path, *, data: Path, watch: Watcher, record: dict[str, Any]):
        self.run, self.out, self.data, self.watch, self.record = run, out, data, watch, record
        train, task = run.train, run.task
        self.mesh, self.tokens = mesh_of(run), train.batch * task.length
        self.model = jax.eval_shape(lambda: build_model(run))
        self.program = program(dismantle(self.model)[0], train, self.mesh)
        self.state = started(build_model, run, self.mesh)
        self.rows = rows_here(rows(self.mesh), train.batch)
        self.stream = pipeline.train_batches(
            task, batch=train.batch, seed=run.seed, directory=data, rows=self.rows
        )
        self.checkpoints = Checkpoints(out / "checkpoints", keep=train.keep, warn=watch.say)

        self.step, self.saved, self.evaluated, self.solved = 0, -1, -1, False
        self.window = dict(measures.NOTHING)
        self.validation: Metrics = {}
        self.save_seconds: float | None = None
        self.called: tuple[Any, ...] = ()
        self.cost: Cost = None
        self.clock = Clock()
        self.resume()

        self.log = Log(out, step=self.step) if first() else None
        self.feed: Feed | None = None
        self.pending: deque[tuple[int, int, Any]] = deque()
        self.signals, self.profile = Signals(), Profile(out / "profile", train.profile)
        self.compiled = False
        self.clock.start()

    # From beginning to end.

    def result(self) -> dict[str, Any]:
        """Trains to the end and writes the result."""
        try:
            with self.signals.listening():
                found = self.through()
        except Diverged as divergence:
            found = self.finish("diverged", str(divergence))
        except Interrupted:
            number = self.signals.obeyed
            self.save()
            self.checkpoints.wait()
            path = self.checkpoints.path(self.step)
            self.watch.say(
                f"Stopped by {signal.Signals(number).name} at step {self.step}: saved in {path}. "
                f"The same command continues from there."
            )
            raise SystemExit(128 + number) from None
        self.signals.at_end()
        return found

    def through(self) -> dict[str, Any]:
        train = self.run.train
        while True:
            at_end = self.solved or self.step == train.steps
            if self.evaluated != self.step and (at_end or self.due(train.evaluate_every)):
                self.evaluate_validation()
                at_end = at_end or self.solved
            if self.saved != self.step and (at_end or self.due(train.save_every or train.evaluate_every)):
                self.save()
            if at_end:
                return self.finish("solved" if self.solved else "finished")
            self.advance()

    def due(self, every: int | None) -> bool:
        return every is not None and self.step > 0 and self.step % every == 0

    def next_stop(self, step: int) -> int:
        """The next step after `step` at which something else than training happens."""
        train = self.run.train
        periods = (train.evaluate_every, train.save_every)
        return min([train.steps, *(every * (step // every + 1) for every in periods if every)])

    # Steps.

    def advance(self) -> None:
        """Trains to the next stop; the numbers of a dispatch are read while the next one runs."""
        train = self.run.train
        if self.feed is None:
            self.feed = Feed(
                self.stream,
                step=self.step,
                stop=self.next_stop,
                # Processes measure different times, and must call with as many steps.
                most=train.steps_per_dispatch or (1 if jax.process_count() > 1 else None),
                place=stacked(self.mesh),
                rows=self.rows,
                batch=train.batch,
            )
        stop_at = self.next_stop(self.step)
        waited = self.feed.waited
        while self.step < stop_at and not self.signals.stopping():
            self.profile.advance(self.step, compiled=self.compiled)
            stack = self.feed.take()
            self.called = (stack.batches, np.int32(stack.count))
            self.state, sums = self.program.steps(self.state, *self.called)
            self.pending.append((self.step, stack.count, sums))
            self.step += stack.count
            self.position = stack.position
            while len(self.pending) > (1 if self.compiled else 0):
                self.read()
                waited = self.feed.waited if not self.clock.steps else waited
        while self.pending:
            self.read()
        self.clock.waited += self.feed.waited - waited
        if self.signals.obeyed is not None:
            raise Interrupted

    def read(self) -> None:
        """Waits for the oldest dispatch that is not read, and records its steps."""
        first, count, sums = self.pending.popleft()
        sums = {name: np.asarray(values) for name, values in jax.device_get(sums).items()}
        elapsed = self.clock.lapsed()
        if self.compiled:
            self.clock.count(count, elapsed)
            if self.run.train.steps_per_dispatch is None:
                self.feed.ask = max(1, int(DISPATCH_SECONDS * count / elapsed))
        self.compiled = True
        for i in range(count):
            self.read_step(first + i + 1, {name: float(values[i]) for name, values in sums.items()})
        speed = count / elapsed if self.clock.steps else 0.0
        loss = float(sums["loss"][:count].sum() / max(float(sums["weight"][:count].sum()), 1e-9))
        self.watch.moved(first + count, loss, speed, speed * self.tokens)

    def read_step(self, step: int, sums: dict[str, float]) -> None:
        if not (math.isfinite(sums["loss"]) and math.isfinite(sums["gradient_norm"])):
            what = "loss" if not math.isfinite(sums["loss"]) else "gradient"
            self.step = step
            raise Diverged(
                f"The {what} is not finite at step {step} (learning rate {sums['learning_rate']:.3g})."
            )
        for name in self.window:
            self.window[name] += sums[name]
        if step % self.run.train.log_every == 0 or step == self.run.train.steps:
            found = measures.of_sums(self.window, self.run.task.metric)
            found |= {name: sums[name] for name in ("learning_rate", "gradient_norm")}
            if (speed := self.clock.lap()) is not None:
                found |= {"steps_per_s": speed, "tokens_per_s": speed * self.tokens}
            self.write(step, "train", found)
            self.window = dict(measures.NOTHING)

    def write(self, step: int, split: str, found: dict[str, float]) -> None:
        if self.log is not None:
            self.log.write(step, split, {**found, "seconds": self.clock.seconds()})
        self.watch.measured(step, split, found)

    # Evaluation.

    def evaluate_validation(self) -> None:
        self.validation = self.evaluate(self.run.task, "validation", "validation")
        self.evaluated = self.step
        goal = self.run.train.stop_at
        self.solved = goal is not None and measures.reached(self.validation, self.run.task.metric, goal)

    def evaluate(self, task: Task, split: Split, name: str) -> Metrics:
        """The metrics of a finite split, over all its targets, written under `name`."""
        total = evaluation.sums(
            self.run,
            task,
            split,
            partial(self.program.evaluate, self.state.params, self.state.rest),
            mesh=self.mesh,
            data=self.data,
            stopping=self.signals.stopping,
        )
        self.clock.lapsed()
        if not math.isfinite(total["loss"]):
            raise Diverged(f"The {name} loss is not finite at step {self.step}.")
        found = measures.of_sums(total, task.metric)
        self.write(self.step, name, found)
        return found

    # Saving and going on.

    def save(self) -> None:
        """Everything that the rest of the run depends on, in one step directory."""
        if self.saved == self.step:
            return
        record = {
            "digest": self.record["digest"],
            "data": self.position if self.step else None,
            "window": self.window,
            "validation": self.validation,
            "evaluated": self.evaluated,
            "solved": self.solved,
            "clock": self.clock.record(),
        }
        if self.log is not None:
            self.log.flush()  # what is resumed from here continues this record
        begun = time.perf_counter()
        self.checkpoints.save(self.step, self.state.parts(), record)
        self.saved = self.step
        if self.save_seconds is None:
            self.checkpoints.wait()  # the first alone, to know how long one takes
            self.save_seconds = time.perf_counter() - begun
            self.compare_grace(self.save_seconds)
        self.clock.lapsed()

    def compare_grace(self, seconds: float) -> None:
        """Says so where a job would be killed before it has saved: what is under way, and where it stands."""
        if first() and 2 * seconds > (given := grace()):
            self.watch.say(
                f"A save took {seconds:.1f} s, and a stop may wait for two; this job has {given:g} s from "
                "SIGTERM to its end. Where the cluster gives more, launch it with "
                f"--grace {math.ceil(4 * seconds)}; elsewhere a stop loses what follows the last finished "
                "save, and a smaller train.save_every loses less."
            )

    def resume(self) -> None:
        """Goes on from the newest checkpoint that verifies, if there is one."""
        found = self.checkpoints.restore(self.state.parts())
        if found is None:
            return
        self.state = self.state.at(found.parts)
        record, self.step = found.record, found.step
        self.saved, self.evaluated, self.solved = found.step, record["evaluated"], record["solved"]
        self.window, self.validation, self.position = record["window"], record["validation"], record["data"]
        self.clock = Clock.of(record["clock"])
        if record["data"] is not None:
            self.stream.restore(record["data"])
        self.watch.say(f"Continuing from step {self.step}.")
        changes = differences(self.record["versions"], versions())
        if changed := ", ".join(f"{name} {old} to {new}" for name, old, new in changes):
            self.watch.say(
                f"The run began with other versions ({changed}): its numbers may differ in their last bits."
            )

    def finish(self, status: str, message: str | None = None) -> dict[str, Any]:
        found: dict[str, Metrics] = {"validation": self.validation} if self.validation else {}
        if status == "diverged":
            self.checkpoints.wait()
            last = f"step {self.saved} in {self.checkpoints.path(self.saved)}" if self.saved >= 0 else "none"
            message = f"{message} The last good checkpoint is {last}."
            self.watch.say(message)
        else:
            found["test"] = self.evaluate(self.run.task, "test", "test")
            for name, task in self.run.task.evaluations().items():
                found[f"test/{name}"] = self.evaluate(task, "test", f"test/{name}")
        self.checkpoints.wait()
        return agreed(lambda: self.written(status, found, message))

    def written(self, status: str, found: dict[str, Metrics], message: str | None) -> dict[str, Any]:
        """The result, which is now in the directory."""
        speed, wait = self.clock.speed()
        result = {
            "status": status,
            "step": self.step,
            "metrics": found,
            "baselines": self.run.task.baselines(self.data),
            "parameters": sum(int(x.size) for x in self.state.params.values()),
            "state_size": self.model.state_size(),
            "state_bytes": self.model.state_bytes(),
            "notes": self.model.notes(),
            "executions": executions(dismantle(self.model)[0], self.mesh, self.state, *self.called[:1]),
            "seconds": self.clock.seconds(),
            "steps_per_s": speed,
            "tokens_per_s": speed * self.tokens,
            "data_wait": wait,
            "save_seconds": self.save_seconds,
            "date": time.strftime("%Y-%m-%d", time.gmtime()),
        } | ({"message": message} if message else {})
        if self.cost is not None and self.called:
            result |= self.cost(self.program.steps, self.state, *self.called)
        if self.log is not None:
            self.log.flush()  # before the result, which says that nothing is to follow
        write_json(self.out / RESULT, result)
        return result

    def close(self) -> None:
        for part in (self.feed, self.profile, self.checkpoints, self.log):
            if part is not None:
                part.close()
