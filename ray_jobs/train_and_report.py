"""Training and what follows it in every run: rollouts of held-out clips, checks, report."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ray_jobs.errors import JobError, UserError, storage_errors_in_words
from ray_jobs.plan import Plan
from ray_jobs.render import TRUTH_FILE
from ray_jobs.rollout_rows import UNTRAINED
from ray_jobs.run_folder import CHECKS, RunFolder, write_whole
from ray_jobs.train import TrainResult, run_training
from worldmodel.config import RunConfig
from worldmodel.export import add_facts, check_facts

REQUEST_FILE = "request.json"  # written last, beside complete rollouts
Say = Callable[[str, dict[str, Any]], None]


def train_and_report(
    cfg: RunConfig, *, command: str, say: Say, make_source: Callable[[], None] | None = None
) -> tuple[TrainResult, Path]:
    """Trains, continues held-out clips, checks them and writes report.html; Ray must be connected.
    make_source as in run_training."""
    trained = run_training(cfg, command=command, progress=say, make_source=make_source)
    with storage_errors_in_words(trained.run):
        if trained.status == "finished":
            _continue_held_out(cfg, trained.run, say)
        say("report", {})
        from ray_jobs.report import write_report  # plotting is imported when there is something to plot

        return trained, write_report(trained.run, show=cfg.rollout.show)


def _continue_held_out(cfg: RunConfig, run: Path, say: Say) -> None:
    from ray_jobs.check import check_rollouts
    from ray_jobs.report_picture import write_picture
    from ray_jobs.rollout import run_rollouts

    folder = RunFolder(cfg)
    plan = Plan.load(folder.plan)
    ids = plan.held_out_ids
    ids = ids[plan.bucket_of[ids] == 0][: cfg.rollout.clips]  # rollouts are of data.clip_s and data.size
    if not len(ids):
        return
    request = {"seed": cfg.seed, "clips": ids.tolist(), "rollout": cfg.rollout.model_dump(mode="json")}
    if not _is_done(folder, request):
        try:
            run_rollouts(
                folder.export,
                plan,
                ids.tolist(),
                out=folder.rollouts,
                rollout=cfg.rollout,
                seed=cfg.seed,
                beside=_beside(cfg, folder),
                progress=lambda done, total: say("rollout", {"done": done, "total": total}),
            )
        except JobError:
            raise
        except UserError as error:
            # Held-out clips shorter than the prefix cannot be continued; the model is there all the same.
            say("rollout", {"note": str(error)})
            return
        write_whole(folder.rollouts / REQUEST_FILE, json.dumps(request))
    write_picture(folder.rollouts, run / "continued.png")
    say("check", {})
    checks = check_rollouts(folder.rollouts, truth=_truth_beside(cfg), out=run / CHECKS, seed=cfg.seed)
    add_facts(folder.export, cfg, check_facts(checks))


def _truth_beside(cfg: RunConfig) -> str | None:
    """What `worldmodel render` wrote beside the clips of the one source."""
    source = Path(cfg.data.manifest)
    truth = (source if source.is_dir() else source.parent) / TRUTH_FILE
    return str(truth) if cfg.data.manifest and truth.is_file() else None


def _beside(cfg: RunConfig, folder: RunFolder) -> dict[str, Path]:
    """The model before training, and those that the config names."""
    from ray_jobs.export import export_untrained
    from ray_jobs.models import find_model

    if not cfg.rollout.show:
        return {}
    others = {Path(name).name: find_model(name) for name in cfg.rollout.beside}
    return {UNTRAINED: export_untrained(cfg, folder.path / UNTRAINED), **others}


def _is_done(folder: RunFolder, request: dict[str, Any]) -> bool:
    """Whether the rollouts that lie there answer this very request. A finished run keeps its weights."""
    try:
        return json.loads((folder.rollouts / REQUEST_FILE).read_text("utf-8")) == request
    except FileNotFoundError:
        return False
