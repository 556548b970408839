"""`worldmodel demo --pretrained`: the shipped model on freshly rendered clips, within a minute."""

from __future__ import annotations

import json
import time
from pathlib import Path

from ray_jobs.cluster import connect
from ray_jobs.demo import DemoResult, Say
from ray_jobs.errors import UserError
from ray_jobs.render import MANIFEST_FILE, TRUTH_FILE, check_render, render

MODEL, WORLD, CLIPS = "bounce", "bounce", 16
SEED = 2_000_000_000  # of clips that it has not seen


def run_pretrained(
    *, out: Path, world: str, clips: int, say: Say, model: str = MODEL, address: str | None = None
) -> DemoResult:
    """Renders, continues, checks and reports into `out`. UserError when the folder holds something else."""
    from ray_jobs.check import check_rollouts
    from ray_jobs.export import load_exported
    from ray_jobs.models import find_model
    from ray_jobs.report import write_report
    from ray_jobs.report_picture import write_picture
    from ray_jobs.rollout import prompts_from, run_rollouts

    began = time.monotonic()
    folder = find_model(model)
    cfg = load_exported(folder).cfg
    length_s = cfg.rollout.prefix_s + cfg.rollout.seconds
    source, rollouts = out / "clips", out / "rollouts"
    if (out / "config.yaml").exists():
        raise UserError(f"{out}: holds a training run; give another folder with --out")
    check_render(world, clips=clips, out=source, duration_s=length_s)
    say("start", {})
    connect(address)
    startup_s = time.monotonic() - began
    say("render", {})
    render(
        world,
        clips=clips,
        out=str(source),
        seed=SEED,
        duration_s=length_s,
        progress=lambda done, total: say("render", {"done": done, "total": total}),
    )
    plan = prompts_from(str(source / MANIFEST_FILE), cfg, cfg.rollout)
    run_rollouts(
        folder,
        plan,
        list(range(plan.num_samples)),
        out=rollouts,
        rollout=cfg.rollout,
        progress=lambda done, total: say("rollout", {"done": done, "total": total}),
    )
    write_picture(rollouts, out / "continued.png")
    say("check", {})
    checks = check_rollouts(rollouts, truth=str(source / TRUTH_FILE), out=out / "checks.json")
    say("report", {})
    (out / "run.json").write_text(json.dumps({"name": f"demo of {model}", "model": model, "world": world}))
    report = write_report(out, show=cfg.rollout.show)
    return DemoResult(out, report, "finished", time.monotonic() - began, startup_s, checks)
