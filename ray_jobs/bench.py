"""Runs one file of benchmarks/ and files what it measured: every number in the docs can be made again."""

from __future__ import annotations

import importlib.util
import inspect
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from types import ModuleType
from typing import Any

from ray_jobs.errors import JobError, UserError
from ray_jobs.run_folder import run_facts
from ray_jobs.runtime_env import ROOT

RANK_LIMIT_S = 1800
RANK_POLL_S = 0.2
LAST_LINES = 5


@dataclass(frozen=True)
class Measured:
    """What `run(smoke)` of a benchmark returns. Rates and relative errors are fractions.

    figures: key -> number, the keys that the docs promise. raw: every repeat. n: how many repeats.
    baseline: what the figures are compared with, absolute. config: YAML. log: what was printed on the way.
    files: pictures and pages by name, filed beside them. variant: of the folder's name, where another
    measurement of the same day must not be overwritten.
    """

    figures: dict[str, Any]
    raw: Any
    n: int
    baseline: dict[str, Any] | None = None
    config: str = ""
    log: str = ""
    files: dict[str, bytes] = field(default_factory=dict)
    variant: str = ""


def run_benchmark(name: str, *, smoke: bool, root: Path = ROOT, **options: Any) -> dict[str, Any]:
    """Measures benchmarks/<name>.py of the checkout `root`; unless smoke, files it in benchmarks/results/.

    options: of those benchmarks that have them. UserError for an unknown name or option, or outside a
    checkout; JobError when what is measured breaks.
    """
    began = datetime.now(UTC)
    given = {option: value for option, value in options.items() if value is not None}
    flags = "".join(f" --{option} {value}" for option, value in given.items())
    facts = run_facts(f"worldmodel bench {name}{' --smoke' if smoke else ''}{flags} --json")
    module = load_benchmark(name, root)
    if unknown := given.keys() - inspect.signature(module.run).parameters.keys():
        raise UserError(f"worldmodel bench {name}: has no --{min(unknown)}; leave it out")
    measured: Measured = module.run(smoke, **given)
    result = {
        "name": name,
        "figures": measured.figures,
        "raw": measured.raw,
        "n": measured.n,
        "baseline": measured.baseline,
        "command": facts["command"],
        "git": facts["git"],
        "versions": facts["versions"],
        "machine": facts["machine"],
        "smoke": smoke,
        "date": began.isoformat(timespec="seconds"),
        "seconds": round((datetime.now(UTC) - began).total_seconds(), 1),
    }
    if not smoke:
        _file(
            result, measured, root / "benchmarks" / "results" / f"{began:%Y-%m-%d}_{name}{measured.variant}"
        )
    return result


def load_benchmark(name: str, root: Path = ROOT) -> ModuleType:
    """benchmarks/<name>.py as a module. UserError for an unknown name or outside a checkout."""
    if not (root / "pyproject.toml").exists() or not (root / "benchmarks").is_dir():
        raise UserError(
            f"worldmodel bench {name}: {root} is no checkout; clone the repository and run it there"
        )
    known = known_benchmarks(root)
    if name not in known:
        raise UserError(f"no benchmark is named {name!r}; there is {', '.join(known)}")
    file = root / "benchmarks" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(f"benchmarks_{name}", file)
    assert spec is not None, f"{file} is a Python file"
    assert spec.loader is not None, f"{file} is a Python file"
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def known_benchmarks(root: Path = ROOT) -> list[str]:
    return sorted(file.stem for file in (root / "benchmarks").glob("*.py"))


def run_ranks(script: Path, world_size: int, arguments: Sequence[str], *, log: Path) -> None:
    """Runs `script ARGUMENTS` once a rank, one CPU thread each, in the environment torch.distributed reads.

    JobError, with the last lines, when a rank fails or they take longer than RANK_LIMIT_S.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    shared = {"WORLD_SIZE": str(world_size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    shared |= {"OMP_NUM_THREADS": "1"}
    with log.open("a", encoding="utf-8") as out:
        ranks = [
            subprocess.Popen(
                [sys.executable, str(script), *arguments],
                env={**os.environ, **shared, "RANK": str(rank), "LOCAL_RANK": str(rank)},
                stdout=out,
                stderr=out,
            )
            for rank in range(world_size)
        ]
        try:
            codes = _exit_codes(ranks)
        finally:
            for rank in ranks:
                rank.kill()
                rank.wait()
    if codes != [0] * world_size:
        raise JobError(f"{script.name} {' '.join(arguments)}: ranks ended with {codes}", *last_lines(log))


def _exit_codes(ranks: list[subprocess.Popen[bytes]]) -> list[int | None]:
    """Until all ended, one failed or the time is up: the others would wait for a dead rank forever."""
    ends_at = time.monotonic() + RANK_LIMIT_S
    while True:
        codes = [rank.poll() for rank in ranks]
        if None not in codes or any(codes) or time.monotonic() > ends_at:
            return codes
        time.sleep(RANK_POLL_S)


def last_lines(log: Path) -> list[str]:
    return log.read_text("utf-8", errors="replace").splitlines()[-LAST_LINES:]


def _file(result: dict[str, Any], measured: Measured, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "result.json").write_text(json.dumps(result, indent=1) + "\n", "utf-8")
    (folder / "log.txt").write_text(measured.log, "utf-8")
    for name, content in measured.files.items():
        (folder / name).write_bytes(content)
    if measured.config:
        (folder / "config.yaml").write_text(measured.config, "utf-8")
