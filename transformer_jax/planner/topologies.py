"""TPU slices that are not here: their devices, as the TPU compiler knows them, and which there are."""

from __future__ import annotations

import functools
import importlib.util
import os
from collections.abc import Sequence
from typing import Any

from transformer_jax.errors import BadInput
from transformer_jax.launch.topology import Generation, tpu

QUIET = {
    # Without these the compiler looks for the TPU that it should run on, and says that there is none.
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TF_CPP_MIN_LOG_LEVEL": "3",
}


def prepare() -> None:
    """Makes this process one that plans: JAX computes on the CPU, the TPU's compiler is only asked. To be
    called before anything is computed."""
    os.environ["JAX_PLATFORMS"] = "cpu"
    os.environ["ALLOW_MULTIPLE_LIBTPU_LOAD"] = "1"
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    import jax

    jax.config.update("jax_platforms", "cpu")


def require_compiler() -> None:
    """Raises BadInput where the TPU's compiler is not installed."""
    if importlib.util.find_spec("libtpu") is None:
        raise BadInput('Planning needs the TPU compiler, which is not installed: pip install ".[tpu]".')


def generation(topology: str) -> Generation:
    """The generation of a slice such as v5e:4x4. Raises BadInput where there is no such slice."""
    kind, count = tpu(topology).generation, chips(topology)
    if count > kind.most:
        raise BadInput(
            f"--topology {topology}: these are {count:,} chips, and a pod of {topology.partition(':')[0]} "
            f"has {kind.most:,}: choose a smaller slice."
        )
    return kind


def chips(topology: str) -> int:
    """How many a slice has."""
    slice_ = tpu(topology)
    return slice_.hosts * slice_.chips


@functools.lru_cache(maxsize=4)
def devices(topology: str) -> Sequence[Any]:
    """The chips of a slice, without any of them being there. Raises BadInput where there is no such slice."""
    from jax.experimental import topologies

    require_compiler()
    kind, (_, _, shape) = generation(topology), topology.partition(":")
    more: dict[str, Any] = {}
    if not kind.flat:  # two cores on a chip, which are one device only with these
        more = {"chip_config_name": "megacore", "chips_per_host_bounds": (2, 2, 1)}
    elif shape == "1x1":
        more = {"chips_per_host_bounds": (1, 1, 1)}
    name = f"{kind.compiler}:{shape}"
    try:
        return topologies.get_topology_desc(platform="tpu", topology_name=name, **more).devices
    except Exception as error:
        reason = str(error).splitlines()[0][:200]
        raise BadInput(f"--topology {topology}: the TPU compiler knows no such slice ({reason}).") from None


def ladder(topology: str) -> list[str]:
    """The usual slices of the same generation, from small to large."""
    kind = generation(topology)
    return [f"{topology.partition(':')[0]}:{shape}" for shape in kind.shapes]
