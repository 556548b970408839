"""Small runs that something happens to, and what their folders say of it."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ray_jobs.accounting import Ledger
from ray_jobs.plan import Plan
from ray_jobs.run_folder import RunFolder, last_commit
from ray_jobs.train import TrainResult
from worldmodel.config import RunConfig

STEPS, EVERY = 48, 8


def config(storage: Path, name: str, clips: Path, **changes: dict[str, Any]) -> RunConfig:
    values: dict[str, dict[str, Any]] = {
        "data": {"manifest": str(clips), "clip_s": 1.0, "batch_clips": 2, "held_out": 0.3},
        "model": {"depth": 2, "width": 64, "head_dim": 32},
        "train": {
            "steps": STEPS,
            "checkpoint_every": EVERY,
            "evaluate_every": 2 * EVERY,
            "evaluate_clips": 2,
            "precision": "fp32",
            "keep_best": True,
        },
        "rollout": {"prefix_s": 0.5, "seconds": 0.5, "steps": 2, "clips": 3, "actors": 1, "show": 2},
    }
    merged = {part: {**fields, **changes.get(part, {})} for part, fields in values.items()}
    return RunConfig.model_validate({"name": name, "storage": str(storage), **merged})


@dataclass
class Runs:
    """Two runs of one config over the same clips, both planned before one of the clips broke."""

    whole: RunConfig
    chain: RunConfig
    broken: Path
    trained: list[TrainResult] = field(default_factory=list)


@dataclass(frozen=True)
class Ended:
    code: int
    stdout: str
    stderr: str
    step: int


def rows_of(run: Path) -> list[dict[str, Any]]:
    """The training rows of metrics.jsonl."""
    if not (run / "metrics.jsonl").exists():
        return []
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [row for row in rows if "loss" in row]


def steps_of(run: Path) -> dict[int, list[int]]:
    """attempt -> the steps that it trained, in order."""
    steps: dict[int, list[int]] = {}
    for row in rows_of(run):
        steps.setdefault(int(row["attempt"]), []).append(int(row["step"]))
    return steps


def final_losses(run: Path) -> dict[int, float]:
    """step -> loss; where a step was trained again the later row counts."""
    return {int(row["step"]): row["loss"] for row in rows_of(run)}


def assert_books_close(cfg: RunConfig, *, step: int) -> dict[str, Any]:
    """The last commit holds just the samples before `step`: none lost, none doubled."""
    folder = RunFolder(cfg)
    plan, commit = Plan.load(folder.plan), last_commit(folder.path)
    assert commit is not None
    assert commit.name.startswith(f"step-{step:07d}-")
    ledger = Ledger.from_files(commit)
    ledger.check(plan)
    assert ledger.position == step * cfg.train.micro_batches
    found = json.loads((folder.path / "accounting.json").read_text())
    assert found["planned"] == found["consumed"] + len(found["quarantined"]) + found["remaining"]
    return found


def break_file(path: Path) -> None:
    """Leaves the first bytes, of which no decoder can make anything."""
    path.write_bytes(path.read_bytes()[:300])


def evaluations(run: Path) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [row for row in rows if "eval_video" in row]


def until(fact: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + 120
    while not fact():
        assert time.monotonic() < deadline, f"waited 120 s for {what}"
        time.sleep(0.2)
