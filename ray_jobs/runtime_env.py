"""How the packages reach Ray workers: the one place that decides."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
EXCLUDED = [".git", ".venv", "runs", "tests", "docs", "benchmarks/results", "**/__pycache__", "*.mp4"]


def package_version() -> str:
    try:
        return version("worldmodel")
    except PackageNotFoundError:
        return "source"


def runtime_env(*, local: bool) -> dict[str, Any]:
    """Local workers share this machine's installation. On a cluster a source checkout travels with the job; an
    installed wheel is expected in the image."""
    environment = {"env_vars": {"OMP_NUM_THREADS": "1", "WORLDMODEL_VERSION": package_version()}}
    if local or not (ROOT / "pyproject.toml").exists():
        return environment
    return {
        **environment,
        "working_dir": str(ROOT),
        "py_modules": [str(ROOT / "tokenizers" / "avtok")],
        "excludes": EXCLUDED,
    }
