"""How the packages reach Ray workers: the one place that decides."""

from __future__ import annotations

import json
import os
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
AVTOK = str(ROOT / "tokenizers" / "avtok")  # tokenizers/ is a source root, not a package
# tokenizers/avtok travels as a module of its own, with 8 MB of codecs that need not travel twice.
EXCLUDED = [
    *(".git", ".venv", "runs", "tests", "docs", "benchmarks/results", "tokenizers"),
    *("**/__pycache__", "*.mp4"),
]
ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",  # one worker, one core: torch would start a thread per core in each
    # glibc would hand a step's large temporaries back to the kernel and fault them in again, page by page
    "MALLOC_MMAP_THRESHOLD_": str(32 << 20),
    "MALLOC_TRIM_THRESHOLD_": str(1 << 30),
    "MALLOC_TOP_PAD_": str(64 << 20),
}
# `ray job stop` means Ctrl-C: the workers commit first, for which Ray's own 3 s are too short.
STOP_COMMITS = {"RAY_JOB_STOP_SIGNAL": "SIGINT", "RAY_JOB_STOP_WAIT_TIME_S": "120"}


def package_version() -> str:
    try:
        return version("worldmodel")
    except PackageNotFoundError:
        return "source"


def runtime_env(*, local: bool) -> dict[str, Any]:
    """Local workers share this machine's installation. On a cluster a source checkout travels with the job;
    an installed wheel is expected in the image. Inside a job it has travelled already."""
    job = _of_this_job()
    given = {} if job is None else job.get("env_vars", {})
    # Ray refuses a key that the job has already
    environment = {"env_vars": {k: v for k, v in ENVIRONMENT.items() if k not in given}}
    if local or job is not None or not is_checkout():
        return environment
    return {**environment, **checkout()}


def job_runtime_env(working_dir: Path | None = None) -> dict[str, Any]:
    """What `worldmodel submit` sends. A working_dir of one's own replaces the checkout as the job's folder;
    the packages of a checkout then travel beside it."""
    environment = {"env_vars": {**ENVIRONMENT, **STOP_COMMITS}}
    if working_dir is None or working_dir.resolve() == ROOT:
        return {**environment, **checkout()} if is_checkout() else environment
    packages = [str(ROOT / "worldmodel"), str(ROOT / "ray_jobs"), AVTOK] if is_checkout() else []
    return {**environment, "working_dir": str(working_dir), "py_modules": packages, "excludes": EXCLUDED}


def is_checkout() -> bool:
    return (ROOT / "pyproject.toml").exists()


def checkout() -> dict[str, Any]:
    return {"working_dir": str(ROOT), "py_modules": [AVTOK], "excludes": EXCLUDED}


def _of_this_job() -> dict[str, Any] | None:
    """The runtime environment of the Ray job that this process is the driver of; None outside a job."""
    given = os.environ.get("RAY_JOB_CONFIG_JSON_ENV_VAR")
    return None if given is None else json.loads(given).get("runtime_env") or {}
