"""runs/<name>/: what lies where, and what was committed."""

from __future__ import annotations

import json
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from ray_jobs.errors import JobError, UserError, storage_errors_in_words
from worldmodel.config import RunConfig
from worldmodel.load_config import config_difference, dump_config, load_config

SNAPSHOT = "checkpoint_manager_snapshot.json"  # Ray Train's list: only what it names is committed
BEST = "best"  # the folder of the commit with the lowest held-out error, see keep_best.py
CHECKS = "checks.json"
WARNINGS = "warnings.txt"  # what looked wrong while the run went on, a line each
PACKAGES = ("ray", "torch", "deepspeed", "av", "torchaudio", "pyarrow")
# Settings that may change between two starts of one run: they alter neither the samples nor the weights.
FREE_TO_CHANGE = (
    "train.workers",
    "train.sequence_parallel",
    "train.zero_stage",
    "train.offload_optimizer",
    "train.threads",
    "train.recompute",
    "train.max_failures",
    "train.tracker",
    "train.checkpoint_every",
    "train.keep_",
    "train.evaluate_",
    "data.decode_actors",
    "data.encode_gpus",
    "data.decoder",
    "data.sandbox",
    "data.limits",
    "data.spool_gb",
    "data.cache",
    "data.max_quarantine_rate",
    "rollout.",
    "storage",
)


class RunFolder:
    """One run's folder on a file system that every node sees."""

    def __init__(self, cfg: RunConfig) -> None:
        if "://" in cfg.storage:
            raise UserError(f"storage: {cfg.storage} is remote; give a folder that every node mounts")
        self.path = (Path(cfg.storage).expanduser() / cfg.name).resolve()
        self.sources = [source.name for source in cfg.data.mixture]

    @property
    def manifests(self) -> dict[str, Path]:
        """Of each source by its name."""
        if not self.sources:
            return {"clips": self.path / "manifest.parquet"}
        return {name: self.path / f"manifest-{name}.parquet" for name in self.sources}

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

    @property
    def config(self) -> Path:
        return self.path / "config.yaml"

    def check_free(self, cfg: RunConfig) -> None:
        """UserError, with the difference, when the name is taken by another config."""
        if not self.config.exists():
            return
        old = load_config(self.config)
        changed = [d for d in config_difference(old, cfg) if not d.startswith(FREE_TO_CHANGE)]
        if changed:
            shown = "; ".join(changed[:5]) + ("; ..." if len(changed) > 5 else "")
            raise UserError(
                f"{self.path}: this name is taken by a run with another config ({shown}); "
                f"use another name (--set name=...), the same config to resume, or remove the folder"
            )

    def make(self) -> None:
        """UserError when the folder cannot be made, JobError when the disk is full."""
        with self._writing():
            self.path.mkdir(parents=True, exist_ok=True)

    def claim(self, cfg: RunConfig, command: str) -> None:
        """Writes config.yaml and run.json. From here on the name belongs to this config."""
        with self._writing():
            write_whole(self.path / "run.json", json.dumps(run_facts(command), indent=1))
            write_whole(self.config, dump_config(cfg))

    def num_attempts(self) -> int:
        """Worker groups that have left a checkpoint folder, whole or not: the highest number in the names."""
        names = (path.name for path in (self.path / "checkpoints").glob("step-*-*"))
        return max((int(name.rpartition("-")[2]) for name in names), default=0)

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            with storage_errors_in_words(self.path):
                yield
        except OSError as error:
            raise UserError(
                f"{self.path}: cannot be written: {error.strerror}; set storage to another folder"
            ) from None


def write_whole(path: Path, text: str) -> None:
    """Atomic: a reader, or the next start after a full disk, sees the whole file or the one before."""
    partial = path.with_name(f".{path.name}.partial")
    try:
        partial.write_text(text, "utf-8")
        partial.replace(path)
    except OSError:
        with suppress(OSError):
            partial.unlink()
        raise


def last_commit(run: Path) -> Path | None:
    """Folder of the newest committed checkpoint, None before the first. Ray Train's own list says which; that
    is written in place, so a crash or a full disk may cut it short, and its last folder may have been
    removed: then the newest whole folder counts."""
    latest = (_listed(run) or {}).get("latest_checkpoint_result")
    if latest and (listed := run / latest["checkpoint_dir_name"]).is_dir():
        return listed
    return next(reversed(_whole_folders(run)), None)


def listed_commits(run: Path) -> list[Path]:
    """Folders that Ray Train has entered and not removed yet, oldest first."""
    results = (_listed(run) or {}).get("checkpoint_results", [])
    return [run / result["checkpoint_dir_name"] for result in results]


def sweep(run: Path, *, keep: int) -> None:
    """Removes what a crash, a full disk or a hand left behind: a list that is cut short or names folders that
    are gone, and folders of no commit. Without a list, the newest `keep` whole folders are commits; a list
    that was begun anew since then is of those that followed them. Call while nothing trains here."""
    commits, whole = listed_commits(run), _whole_folders(run)
    if not commits or not all(commit.is_dir() for commit in commits):
        (run / SNAPSHOT).unlink(missing_ok=True)
        commits = []
    before = [folder for folder in whole if not commits or folder.name < commits[0].name]
    commits = [*before, *commits][-max(keep, len(commits)) :]
    for folder in (run / "checkpoints").glob("step-*"):
        if folder not in commits:
            shutil.rmtree(folder, ignore_errors=True)


def _whole_folders(run: Path) -> list[Path]:
    """Of checkpoints, oldest first."""
    return sorted(folder for folder in (run / "checkpoints").glob("step-*") if is_whole(folder))


def is_whole(folder: Path) -> bool:
    """Whether the weights and the ledger of every rank are there in full."""
    from ray_jobs.accounting import Ledger  # torch and pyarrow come with these two
    from worldmodel.train.checkpoint import CheckpointMismatch, CheckpointReader

    try:
        world_size = CheckpointReader(folder).world_size
        Ledger.from_files(folder)
    except (CheckpointMismatch, JobError, OSError, ValueError):
        return False
    return len(list(folder.glob("ledger-*.json"))) == world_size


def _listed(run: Path) -> dict[str, Any] | None:
    """Ray Train's list of commits; None when it is missing or cut short."""
    try:
        listed = json.loads((run / SNAPSHOT).read_text())
        return json.loads(listed) if isinstance(listed, str) else listed  # it may be JSON inside JSON
    except (FileNotFoundError, json.JSONDecodeError):
        return None


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
