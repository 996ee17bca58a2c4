"""`plan RUNS --calibrate`: what a plan says of runs that were made, beside what was measured of them.

A run on a TPU is planned for a slice of as many chips, one on a CPU for the CPU of this machine, whose
FLOP/s and bytes/s are measured first, for no table has them; the compiler gives no cycles there, so the
prediction is the longer of products and bytes. The comparison is written beside the result of each run, and
what it comes to for a kind of chip is kept with the plans.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from statistics import median
from typing import Any

import jax
import jax.numpy as jnp

from transformer_jax.errors import BadInput
from transformer_jax.launch.topology import GENERATIONS
from transformer_jax.planner import topologies
from transformer_jax.planner.counts import counted
from transformer_jax.planner.hlo import parse
from transformer_jax.planner.kept import folder
from transformer_jax.planner.plan import plan, trace
from transformer_jax.store import write_text
from transformer_jax.train.devices import mesh_of
from transformer_jax.train.loop import RESULT
from transformer_jax.train.run import CONFIG, Run, load_run
from transformer_jax.train.step import FREE

PLANNED = "plan.json"
KINDS = {"TPU v4": "v4", "TPU v5 lite": "v5e", "TPU v5": "v5p", "TPU v5p": "v5p", "TPU v6 lite": "v6e"}
"""What a chip calls itself -> its generation."""


def compare(directories: Iterable[Path]) -> list[dict[str, Any]]:
    """Each finished run below the directories: measured and planned step time (s) and temporaries (bytes).

    Runs that differ only in rate, weight decay and seed are one program, and one row. Raises BadInput where
    there is no run.
    """
    rows: dict[str, dict[str, Any]] = {}
    speeds: dict[str, float] | None = None
    for path in sorted(file.parent for directory in directories for file in Path(directory).rglob(RESULT)):
        record, result = (json.loads((path / name).read_text()) for name in (CONFIG, RESULT))
        if not result.get("steps_per_s"):
            continue
        run, device = load_run(path), record["device"]
        same = json.dumps([_program(record["config"]), device], sort_keys=True)
        if same not in rows:
            if device["platform"] == "cpu":
                speeds = speeds or machine()
                planned = on_this_cpu(run, speeds)
            else:
                made = plan(run, record["label"], slice_of(device))
                planned = {"seconds": made.seconds, "temporaries": made.memory.temporaries}
            rows[same] = {
                "label": record["label"].split(",")[0],
                "device": device["kind"] if device["platform"] == "tpu" else f"{device['cores']} CPU cores",
                "chips": device["count"],
                "measured": [],
                "measured_temporaries": result.get("temporaries"),
                "planned": planned["seconds"],
                "planned_temporaries": planned["temporaries"],
            }
        rows[same]["measured"].append(1 / result["steps_per_s"])
        write_text(path / PLANNED, json.dumps(rows[same], indent=1) + "\n")
    if not rows:
        raise BadInput("There is no finished run in these directories: give those that `run` wrote.")
    for row in rows.values():
        row["runs"], row["measured"] = len(row["measured"]), median(row["measured"])
        row["ratio"] = row["measured"] / row["planned"]
    keep(list(rows.values()))
    return list(rows.values())


def on_this_cpu(run: Run, speeds: Mapping[str, float]) -> dict[str, float]:
    """Seconds of a step and temporaries of a run, on a device of this machine."""
    mesh = mesh_of(run)
    compiled = trace(run, mesh)[0].lower().compile()
    totals = counted(parse(compiled.as_text()), mesh.shape)
    seconds = max(totals.flops / speeds["flops"], totals.bytes / speeds["bandwidth"])
    return {"seconds": seconds, "temporaries": compiled.memory_analysis().temp_size_in_bytes}


def machine(size: int = 1024) -> dict[str, float]:
    """FLOP/s of a float32 matrix product and bytes/s of a sum of long arrays, here: the best of several."""
    a, long = jnp.ones((size, size)), jnp.ones(2**24)
    product, sum_ = jax.jit(lambda a: a @ a), jax.jit(lambda x: x + x)
    best = {}
    for name, function, argument, amount in (
        ("flops", product, a, 2 * size**3),
        ("bandwidth", sum_, long, 2 * long.nbytes),
    ):
        function(argument).block_until_ready()
        took = []
        for _ in range(7):
            began = time.perf_counter()
            function(argument).block_until_ready()
            took.append(time.perf_counter() - began)
        best[name] = amount / min(took)
    return best


def slice_of(device: Mapping[str, Any]) -> str:
    """The usual slice of as many chips as a run had. Raises BadInput where there is none."""
    kind = KINDS.get(device["kind"])
    if device["platform"] != "tpu" or kind is None:
        raise BadInput(f"A run on {device['kind']} cannot be planned: only those on a TPU or a CPU can.")
    for name in topologies.ladder(f"{kind}:{GENERATIONS[kind].shapes[0]}"):
        if topologies.chips(name) == device["count"]:
            return name
    raise BadInput(
        f"A run on {device['count']} chips of {kind} is on no usual slice, so it cannot be planned."
    )


def keep(rows: list[dict[str, Any]]) -> None:
    """Remembers measured / planned by kind of chip, for the next plans to say."""
    found = calibration()
    for device in {row["device"] for row in rows if row["device"] in KINDS}:
        ratios = [row["ratio"] for row in rows if row["device"] == device]
        found[KINDS[device]] = {"ratio": median(ratios), "programs": len(ratios)}
    folder().mkdir(parents=True, exist_ok=True)
    write_text(folder() / "calibration.json", json.dumps(found))


def calibration() -> dict[str, dict[str, float]]:
    """Generation -> "ratio" of measured to planned time (median), "programs" that it is of."""
    try:
        return json.loads((folder() / "calibration.json").read_text())
    except (OSError, ValueError):
        return {}


def _program(config: Mapping[str, Any]) -> dict[str, Any]:
    train = {name: value for name, value in config["train"].items() if name not in FREE}
    return {**config, "train": train, "seed": 0}
