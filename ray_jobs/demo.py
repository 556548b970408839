"""The main job once, end to end: render, index, stream, train, roll out, check, report."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from threading import Thread
from typing import Any

from ray_jobs.cluster import connect
from ray_jobs.models import check_beside
from ray_jobs.processor import has_bf16_units
from ray_jobs.render import check_render, render
from ray_jobs.run_folder import RunFolder
from worldmodel.load_config import load_config

# In a checkout beside the packages, in a wheel within this one.
CONFIG_FOLDERS = (Path(__file__).parent.parent / "configs", Path(__file__).parent / "configs")
DEMO_CONFIG = next((f / "demo.yaml" for f in CONFIG_FOLDERS if f.is_dir()), CONFIG_FOLDERS[0] / "demo.yaml")
REST = "ray_jobs.train_and_report"
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
    *,
    out: Path,
    world: str,
    clips: int,
    overrides: list[str],
    command: str,
    say: Say,
    address: str | None = None,
) -> DemoResult:
    """Runs configs/demo.yaml on freshly rendered clips. The same call takes up what is there already."""
    began = time.monotonic()
    source = out / "clips" / "manifest.jsonl"
    places = {
        "name": out.name,
        "storage": out.parent,
        "data.manifest": source,
        "data.cache": out / "cache",
    }
    quoted = [
        f"{key}={json.dumps(str(place))}" for key, place in places.items()
    ]  # a folder may be named 2026
    slow = [] if has_bf16_units() else ["train.precision=fp32"]  # bf16 would take hours
    cfg = load_config(DEMO_CONFIG, [*quoted, *slow, *overrides])
    check_beside(cfg.rollout.beside)
    RunFolder(cfg).check_free(cfg)
    if not source.exists():
        check_render(world, clips=clips, out=source.parent, duration_s=cfg.data.clip_s)
    say("start", {})
    # Seconds of imports that only the rest of the job needs: done while Ray starts and renders.
    imports = Thread(target=import_module, args=(REST,), daemon=True)
    imports.start()
    connect(address, commits=True)
    imports.join()
    from ray_jobs.train_and_report import train_and_report

    def make_clips() -> None:
        say("render", {})
        render(
            world,
            clips=clips,
            out=str(out / "clips"),
            seed=cfg.seed,
            duration_s=cfg.data.clip_s,
            progress=lambda done, total: say("render", {"done": done, "total": total}),
        )

    before_training_s = time.monotonic() - began
    is_rendered = source.exists()  # written last: a folder with a manifest is complete
    trained, report = train_and_report(
        cfg, command=command, say=say, make_source=None if is_rendered else make_clips
    )
    startup_s = before_training_s + trained.first_step_s
    checks_file = trained.run / "checks.json"
    checks = json.loads(checks_file.read_text()) if checks_file.exists() else {}
    return DemoResult(trained.run, report, trained.status, time.monotonic() - began, startup_s, checks)
