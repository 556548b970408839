"""The main job once, end to end: render, index, stream, train, roll out, check, report."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ray_jobs.check import check_rollouts
from ray_jobs.cluster import connect
from ray_jobs.plan import Plan
from ray_jobs.render import TRUTH_FILE, render
from ray_jobs.report import write_report
from ray_jobs.rollout import run_rollouts
from ray_jobs.run_folder import RunFolder
from ray_jobs.train import TrainResult, run_training
from worldmodel.config import RunConfig
from worldmodel.load_config import load_config

DEMO_CONFIG = Path(__file__).parent.parent / "configs" / "demo.yaml"
Say = Callable[[str, dict[str, Any]], None]


@dataclass(frozen=True)
class DemoResult:
    run: Path
    report: Path
    status: str
    wall_s: float
    startup_s: float
    checks: dict[str, Any]


def run_demo(
    *, out: Path, world: str, clips: int, overrides: list[str], command: str, say: Say, address: str | None = None
) -> DemoResult:
    """Runs configs/demo.yaml on freshly rendered clips. The same call takes up what is there already."""
    began = time.monotonic()
    cfg = load_config(DEMO_CONFIG, [f"name={out.name}", f"storage={out.parent}", *overrides])
    source = out / "clips" / "manifest.jsonl"
    cfg = cfg.model_copy(update={"data": cfg.data.model_copy(update={"manifest": str(source)})})
    connect(address)
    if not source.exists():  # written last: a folder with a manifest is complete
        say("render", {})
        render(
            world,
            clips=clips,
            out=str(out / "clips"),
            seed=cfg.seed,
            duration_s=cfg.data.clip_s,
            progress=lambda done, total: say("render", {"done": done, "total": total}),
        )
    before_training = time.monotonic() - began
    trained = run_training(cfg, command=command, progress=say)
    checks: dict[str, Any] = {}
    if trained.status == "finished":
        checks = finish_run(cfg, trained, truth=out / "clips" / TRUTH_FILE, say=say)
    say("report", {})
    report = write_report(trained.run, show=cfg.rollout.show)
    startup_s = before_training + trained.first_step_s
    return DemoResult(trained.run, report, trained.status, time.monotonic() - began, startup_s, checks)


def finish_run(cfg: RunConfig, trained: TrainResult, *, truth: Path | None, say: Say) -> dict[str, Any]:
    """Continues held-out clips and checks them: what follows every finished training run."""
    folder = RunFolder(cfg)
    plan = Plan.load(folder.plan)
    ids = plan.held_out_ids[: cfg.rollout.clips]
    if not len(ids):
        return {}
    run_rollouts(
        folder.export,
        plan,
        ids.tolist(),
        out=folder.rollouts,
        rollout=cfg.rollout,
        seed=cfg.seed,
        progress=lambda done, total: say("rollout", {"done": done, "total": total}),
    )
    say("check", {})
    checks = check_rollouts(
        folder.rollouts, truth=None if truth is None else str(truth), out=trained.run / "checks.json", seed=cfg.seed
    )
    (trained.run / "training.json").write_text(
        json.dumps({"first_step_s": trained.first_step_s, "seconds": trained.seconds, "attempts": trained.attempts})
    )
    return checks
