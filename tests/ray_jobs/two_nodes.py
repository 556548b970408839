"""A cluster of two nodes by `ray start`, both on the loopback, and what waits for its parts."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

TOKEN = "a token of this test and of no other"
START_S = 90
STARTED = "Ray runtime started"
STARTS = 3  # Ray gives a node 30 s to come up, which a busy machine may not keep
NUM_CPUS = 2  # of each of the two nodes: training fills one, decoding must go to the other


@dataclass
class TwoNodes:
    """What the tests need to know of the cluster."""

    dashboard: str
    folder: Path

    @property
    def discovery(self) -> Path:
        """Where the head names the metrics ports of both nodes."""
        return self.folder / "0" / "prom_metrics_service_discovery.json"


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


@contextmanager
def ray_start(args: list[str], folder: Path, name: str) -> Iterator[None]:
    bin_folder = Path(sys.executable).parent
    environment = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")} | {
        "PATH": f"{bin_folder}:{os.environ['PATH']}",  # the job's `python`
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(folder / "token"),
        "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "0",
        "RAY_metrics_report_interval_ms": "1000",
        "OMP_NUM_THREADS": "1",
    }
    args = [
        *args,
        "--block",
        "--node-ip-address=127.0.0.1",  # else the metrics of a node are there for the whole network
        "--disable-usage-stats",
        f"--num-cpus={NUM_CPUS}",
        "--object-store-memory=150000000",
    ]
    # no fixed port: other clusters may run on this machine
    args += ["--min-worker-port=0", "--max-worker-port=0"]
    args += [f"--{each}={free_port()}" for each in ("dashboard-agent-listen-port", "metrics-export-port")]
    log = folder / f"{name}.log"
    for _ in range(STARTS):
        with log.open("w") as out:
            process = subprocess.Popen(
                [str(bin_folder / "ray"), "start", *args],
                env=environment,
                stdout=out,
                stderr=out,
                start_new_session=True,
            )
        try:
            until(lambda run=process: run.poll() is not None or STARTED in log.read_text(), name, folder)
            if process.poll() is None:
                yield
                return
        finally:
            stop(process)
    raise AssertionError(log.read_text())


def stop(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is not None:
        return
    family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
    process.terminate()
    _, alive = psutil.wait_procs(family, timeout=15)
    for one in alive:
        one.kill()
    process.wait(5)


def answers(port: int) -> bool:
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) == 0


def until(fact: Callable[[], bool], what: str, folder: Path) -> None:
    deadline = time.monotonic() + START_S
    while not fact():
        if time.monotonic() > deadline:
            logs = "\n".join(f"{log.name}: {log.read_text()[-2000:]}" for log in folder.glob("*.log"))
            raise AssertionError(f"{what} did not come up in {START_S} s\n{logs}")
        time.sleep(0.2)
