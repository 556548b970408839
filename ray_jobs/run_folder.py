"""runs/<name>/: what lies where, and what was committed."""

from __future__ import annotations

import json
import platform
import shutil
import subprocess
import sys
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from ray_jobs.errors import UserError
from worldmodel.config import RunConfig
from worldmodel.load_config import config_difference, dump_config, load_config

SNAPSHOT = "checkpoint_manager_snapshot.json"  # Ray Train's list: only what it names is committed
PACKAGES = ("ray", "torch", "deepspeed", "av", "torchaudio", "pyarrow")
# Settings that may change between two starts of one run: they alter neither the samples nor the weights.
FREE_TO_CHANGE = (
    "train.workers",
    "train.threads",
    "train.max_failures",
    "data.decode_actors",
    "rollout.",
    "storage",
)


class RunFolder:
    """One run's folder on a file system that every node sees."""

    def __init__(self, cfg: RunConfig) -> None:
        if "://" in cfg.storage:
            raise UserError(f"storage: {cfg.storage} is remote; give a folder that every node mounts")
        self.path = (Path(cfg.storage).expanduser() / cfg.name).resolve()

    @property
    def manifest(self) -> Path:
        return self.path / "manifest.parquet"

    @property
    def plan(self) -> Path:
        return self.path / "plan.parquet"

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def export(self) -> Path:
        return self.path / "export"

    @property
    def rollouts(self) -> Path:
        return self.path / "rollouts"

    def open(self, cfg: RunConfig, command: str) -> bool:
        """Makes the folder, or takes up the one that is there; True when it resumes. UserError, with the difference,
        when the name is taken by another config."""
        config_file = self.path / "config.yaml"
        if config_file.exists():
            old = load_config(config_file)
            changed = [d for d in config_difference(old, cfg) if not d.startswith(FREE_TO_CHANGE)]
            if changed:
                shown = "; ".join(changed[:5]) + ("; ..." if len(changed) > 5 else "")
                raise UserError(
                    f"{self.path}: this name is taken by a run with another config ({shown}); "
                    f"use another name (--set name=...), the same config to resume, or remove the folder"
                )
        resumes = last_commit(self.path) is not None
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            config_file.write_text(dump_config(cfg))
            (self.path / "run.json").write_text(json.dumps(run_facts(command), indent=1))
        except OSError as error:
            raise UserError(
                f"{self.path}: cannot be written: {error.strerror}; set storage to another folder"
            ) from None
        return resumes


def last_commit(run: Path) -> Path | None:
    """Folder of the newest committed checkpoint, by Ray Train's own list; None before the first."""
    try:
        snapshot = json.loads((run / SNAPSHOT).read_text())
    except FileNotFoundError:
        return None
    if isinstance(snapshot, str):  # the snapshot is JSON inside JSON
        snapshot = json.loads(snapshot)
    latest = snapshot.get("latest_checkpoint_result")
    return run / latest["checkpoint_dir_name"] if latest else None


def run_facts(command: str) -> dict[str, Any]:
    """git sha, versions, command and machine: what a reader needs to run it again."""
    git = shutil.which("git")
    root = Path(__file__).parent
    sha = ""
    if git:
        done = subprocess.run(
            [git, "rev-parse", "HEAD"], cwd=root, capture_output=True, text=True, check=False
        )
        sha = done.stdout.strip()
    return {
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": command,
        "git": sha,
        "versions": {"python": platform.python_version(), **{p: version(p) for p in PACKAGES}},
        "machine": machine(),
    }


def machine() -> dict[str, Any]:
    import psutil

    return {
        "system": platform.system(),
        "processor": _processor(),
        "cores": psutil.cpu_count(),
        "memory_gb": round(psutil.virtual_memory().total / 2**30, 1),
    }


def _processor() -> str:
    if sys.platform == "linux":
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor()
