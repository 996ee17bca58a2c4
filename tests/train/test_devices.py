"""Several devices: the same training, the same checksums, and batches that must divide."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.train.toy import toy_model, toy_run
from transformer_jax.errors import BadInput
from transformer_jax.train import devices, loop
from transformer_jax.train.progress import Silent

ROOT = Path(__file__).parents[2]
SETTINGS = {"steps": 10, "batch": 8, "accumulate": 2, "evaluate_every": 5}
ON_FOUR = f"""
import json, sys
from pathlib import Path
import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from tests.train.toy import toy_model, toy_run
from transformer_jax.checkpoint import checksums
from transformer_jax.train import loop
from transformer_jax.train.progress import Silent
out, data = map(Path, sys.argv[1:])
assert jax.device_count() == 4
loop.build_model = toy_model
loop.train(toy_run(**{SETTINGS}), out, data=data, progress=Silent())
x = jax.random.normal(jax.random.key(0), (8, 12))
mesh = Mesh(jax.devices(), ("data",))
places = [PartitionSpec(), PartitionSpec("data"), PartitionSpec(None, "data")]
print(json.dumps([checksums({{"x": jax.device_put(x, NamedSharding(mesh, p))}})["x"] for p in places]))
"""


def test_four_devices_train_as_one_and_agree_on_checksums(tmp_path, monkeypatch):
    import jax

    from transformer_jax.checkpoint import checksums

    monkeypatch.setattr(loop, "build_model", toy_model)
    one = loop.train(toy_run(**SETTINGS), tmp_path / "one", data=tmp_path / "data", progress=Silent())
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": "--xla_force_host_platform_device_count=4",
    }
    command = [sys.executable, "-c", ON_FOUR, str(tmp_path / "four"), str(tmp_path / "data")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    four = json.loads((tmp_path / "four" / "result.json").read_text())
    for split, metrics in one["metrics"].items():
        for name, value in metrics.items():
            np.testing.assert_allclose(
                four["metrics"][split][name], value, rtol=1e-4, err_msg=f"{split} {name}"
            )
    sums = json.loads(done.stdout.splitlines()[-1])
    assert set(sums) == {checksums({"x": jax.random.normal(jax.random.key(0), (8, 12))})["x"]}
    config = json.loads((tmp_path / "four" / "config.json").read_text())
    assert config["device"]["count"] == 4


def test_a_batch_that_does_not_divide_is_refused(monkeypatch):
    monkeypatch.setattr(devices.jax, "device_count", lambda: 4)
    devices.require_divisible(8)
    devices.require_divisible(16, 2)
    with pytest.raises(BadInput, match="choose a multiple of 4"):
        devices.require_divisible(6)
    with pytest.raises(BadInput, match="2 microbatches: choose a multiple of 8"):
        devices.require_divisible(12, 2)
