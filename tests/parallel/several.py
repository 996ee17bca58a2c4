"""Starts one program as several processes of this machine, and hears how each ended."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]


class Ended(NamedTuple):
    """code: exit code, -9 where it was killed. out, error: what it wrote."""

    code: int
    out: str
    error: str


class Several:
    """`python script PORT PROCESSES 0 ...`, `python script PORT PROCESSES 1 ...` and so on.

    Args:
      script: below the root of the repository. processes: how many. arguments: after the number.
      folder: for what they write.
    """

    def __init__(self, script: str, processes: int, *arguments: object, folder: Path, **environment: str):
        port = str(free_ports())
        settings = {**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu", **environment}
        folder.mkdir(parents=True, exist_ok=True)
        self.files, self.processes = [], []
        for number in range(processes):
            files = [folder / f"{kind}.{number}" for kind in ("out", "error")]
            words = [port, str(processes), str(number), *map(str, arguments)]
            with files[0].open("w") as out, files[1].open("w") as error:
                self.files.append(files)
                self.processes.append(
                    subprocess.Popen(
                        [sys.executable, "-u", ROOT / script, *words],
                        env=settings,
                        stdout=out,
                        stderr=error,
                        cwd=folder,
                    )
                )

    def __enter__(self) -> Several:
        return self

    def __exit__(self, *_) -> None:
        for process in self.processes:
            process.kill()
            process.wait()

    def until(self, text: str, number: int = 0, seconds: float = 120) -> None:
        """Waits until process `number` has printed `text`."""
        deadline = time.monotonic() + seconds
        while text not in self.files[number][0].read_text():
            assert self.processes[number].poll() is None, self.files[number][1].read_text()
            assert time.monotonic() < deadline, f"no {text!r} in {seconds} s"
            time.sleep(0.02)

    def send(self, signal: int, number: int) -> None:
        self.processes[number].send_signal(signal)

    def ended(self, seconds: float = 180) -> list[Ended]:
        """Waits for all."""
        deadline = time.monotonic() + seconds
        codes = [process.wait(max(0.0, deadline - time.monotonic())) for process in self.processes]
        return [
            Ended(code, *(file.read_text() for file in files))
            for code, files in zip(codes, self.files, strict=True)
        ]


def free_ports() -> int:
    """A port that is free, and so is the next one."""
    while True:
        with socket.create_server(("", 0)) as one:
            port = one.getsockname()[1]
            try:
                with socket.create_server(("", port + 1)):
                    return port
            except OSError:
                continue
