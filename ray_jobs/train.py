"""The training job: index, plan, preflight, then Ray Train with ZeRO-3 workers. The same call resumes."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import ray
from ray.exceptions import RayError

from avtok.media import Limits
from ray_jobs.accounting import Ledger
from ray_jobs.board import News, start_board
from ray_jobs.cluster import check_fits
from ray_jobs.errors import JobError, UserError, storage_errors_in_words, storage_problem
from ray_jobs.export import export_run
from ray_jobs.index import index_sources, read_left_out
from ray_jobs.interrupt import first_stop
from ray_jobs.keep_best import BestCommit
from ray_jobs.learnable import Contents, check_learnable, held_out_notes, never_reached, useless_clips
from ray_jobs.metrics import RunMetrics
from ray_jobs.metrics_files import MetricsFiles
from ray_jobs.model_fit import check_layout, init_lines
from ray_jobs.plan import Plan, make_plan
from ray_jobs.pools import with_sized_pool
from ray_jobs.preflight import check_given
from ray_jobs.run_folder import WARNINGS, RunFolder, last_commit, sweep, write_whole
from ray_jobs.run_lock import only_job
from ray_jobs.runtime_env import package_version
from ray_jobs.trackers import check_tracker
from ray_jobs.tracking import Tracking
from ray_jobs.train_worker import layout_of, train_worker
from ray_jobs.waiting import Waiting
from worldmodel.config import RunConfig
from worldmodel.lora import base_of, check_same_base
from worldmodel.reasons import DAMAGED_COMMIT
from worldmodel.train.checkpoint import read_model_file
from worldmodel.train.red_flags import RedFlags

POLL_S = 0.25
Progress = Callable[[str, dict[str, Any]], None]


@dataclass(frozen=True)
class TrainResult:
    """How the job ended. status: finished or stopped."""

    run: Path
    status: str
    step: int
    seconds: float
    first_step_s: float
    attempts: int


def prepare(cfg: RunConfig, command: str) -> tuple[RunFolder, Plan, bool]:
    """Run folder, manifest and plan; all three are kept from the first start that had them, and the name is
    taken from then on. UserError for what was given, JobError for a full disk."""
    check_given(cfg)
    check_layout(cfg)
    folder = RunFolder(cfg)
    folder.make()
    if not folder.config.exists():  # written last: what lies there without it is of a start that failed
        index_all(cfg, folder)
        plan = make_plan({name: str(path) for name, path in folder.manifests.items()}, cfg)
        check_learnable(Contents.of_plan(plan), cfg)
        plan.save(folder.plan)
    commit = last_commit(folder.path)
    if commit is not None:
        check_adapted(cfg, commit)
    folder.claim(cfg, command)
    return folder, Plan.load(folder.plan), commit is not None


def check_adapted(cfg: RunConfig, commit: Path) -> None:
    """UserError where a LoRA would go on with another base than it was begun on."""
    try:
        check_same_base(read_model_file(commit).get("base"), base_of(cfg))
    except ValueError as error:
        raise UserError(str(error)) from None


def index_all(cfg: RunConfig, folder: RunFolder) -> None:
    """Every source of the run becomes a manifest, with labels where data.labels names models."""
    limits = Limits(**cfg.data.limits.model_dump()) if cfg.data.sandbox else None
    labels = cfg.data.labels
    label = None
    if labels.captioner or labels.recognizer or labels.aligner:
        from ray_jobs.labels.models import find_models
        from ray_jobs.labels.run import label_manifest as label  # torchaudio, which nothing else here needs

        find_models(labels)  # a wrong folder is told before an hour of indexing
    for source in cfg.data.sources:
        out = str(folder.manifests[source.name])
        index_sources([source.manifest], out=out, filters=cfg.data.filters, limits=limits)
        if label:
            label(out, labels, out=out, limits=limits)


def run_training(
    cfg: RunConfig,
    *,
    command: str,
    progress: Progress | None = None,
    make_source: Callable[[], None] | None = None,
) -> TrainResult:
    """Trains to cfg.train.steps, or until Ctrl-C or SIGTERM, which commit first. JobError, with the last
    commit and how to resume, when the job breaks. Ray must be connected.

    make_source makes what cfg.data.manifest names; in a new run the workers start meanwhile.
    """
    check_fits(cfg)
    check_layout(cfg)
    check_tracker(cfg.train.tracker)
    folder = RunFolder(cfg)
    folder.make()
    with only_job(folder.path):
        return _run_alone(cfg, folder, command=command, progress=progress, make_source=make_source)


def _run_alone(
    cfg: RunConfig,
    folder: RunFolder,
    *,
    command: str,
    progress: Progress | None,
    make_source: Callable[[], None] | None,
) -> TrainResult:
    began, plan = time.monotonic(), None
    if make_source is None or folder.plan.exists():
        if make_source:
            make_source()
        folder, plan, _ = prepare(cfg, command)
    if plan and _is_committed(folder, cfg.train.steps):
        with storage_errors_in_words(folder.path):
            account(folder, plan)
            export_run(folder.path, folder.export)
        return TrainResult(folder.path, "finished", cfg.train.steps, time.monotonic() - began, 0.0, 0)
    if progress and last_commit(folder.path) is None:
        for line in init_lines(cfg, layout_of(cfg)):
            progress("said", {"note": line})
    attempts_before = folder.num_attempts()
    sweep(folder.path, keep=cfg.train.keep_checkpoints)
    board = start_board(attempts_before, plan_is_there=plan is not None)
    failure: list[BaseException] = []
    sized = cfg  # with as many decode actors as its clips need, once there is a plan

    def fit() -> None:
        try:
            _trainer(sized, folder, board).fit()
        except Exception as error:  # Ray wraps whatever a worker raised; the board knows the first cause
            failure.append(error)

    # Not in the main thread: there Ray would take Ctrl-C and throw away what came after the last commit.
    thread = threading.Thread(target=fit, daemon=True)
    if plan is None and make_source:
        thread.start()
        try:
            make_source()
            folder, plan, _ = prepare(cfg, command)
        except BaseException:
            board.set_plan_is_there.remote(False)
            raise
        board.set_plan_is_there.remote(True)
    assert plan is not None
    if last_commit(folder.path) is None:
        of_clips = useless_clips(Contents.of_plan(plan), cfg)
        for note in (*never_reached(cfg), *of_clips, *held_out_notes(plan, cfg)):
            _warn(folder, note, progress)
    with storage_errors_in_words(folder.path):
        metrics = MetricsFiles(folder.path)
    exported, flags = _exported_metrics(cfg, folder), RedFlags(begins_anew=not cfg.train.init)
    best = BestCommit(folder.path) if cfg.train.keep_best else None
    tracking = Tracking(cfg, folder.path)
    news, waiting = News(), Waiting(cfg, ray.cluster_resources)
    first_step_s, failures = 0.0, list[str]()
    outcome: dict[str, Any] | None = None
    with first_stop(lambda: _ask_to_stop(board, progress)):
        if not thread.is_alive():
            sized = with_sized_pool(plan, cfg, folder)
            thread.start()
        while True:
            alive = thread.is_alive()
            try:
                news = cast(News, ray.get(board.collect.remote()))
            except RayError:
                break
            for row in news.rows:
                first_step_s = first_step_s or time.monotonic() - began
                if not metrics.write(row | {"attempt": news.attempt}):
                    board.request_stop.remote()  # what was trained may still fit into a commit
                exported.row(row)
                if best:
                    best.see(row)
                for warning in flags.see(row):
                    _warn(folder, warning, progress)
                if progress:
                    progress("train", row | {"total": cfg.train.steps})
            for at_s in news.committed_at:
                exported.add("commits_total")
                exported.set("last_commit_timestamp_seconds", at_s)
            if best and not best.keep():
                board.request_stop.remote()
            if problem := tracking.problem():
                _warn(folder, problem, progress)
            note = waiting.note(has_news=bool(news.rows or news.failures or news.committed_at))
            if note and progress:
                progress("said", {"note": note})
            outcome, failures = outcome or news.outcome, failures + news.failures
            if not alive:
                break
            thread.join(POLL_S)
    metrics.close()
    if problem := tracking.close(outcome["status"] if outcome else "failed"):
        _warn(folder, problem, progress)
    sweep(folder.path, keep=cfg.train.keep_checkpoints)
    if problem := metrics.problem or (best and best.problem):
        outcome = {"status": "failed", "reason": problem}
    is_done = outcome is not None and outcome["status"] in ("finished", "stopped")
    if outcome and is_done and not _is_committed(folder, outcome["step"]):
        outcome = None  # the workers were done, but Ray could not enter the last commit
    if outcome is None or not is_done:
        with suppress(OSError, JobError):  # what broke first is what must be said
            account(folder, plan)
        raise _failure(folder, outcome, failures, failure)
    with storage_errors_in_words(folder.path):
        account(folder, plan)
    if outcome["status"] == "finished":
        with storage_errors_in_words(folder.path):
            export_run(folder.path, folder.export)
    return TrainResult(
        folder.path,
        outcome["status"],
        outcome["step"],
        time.monotonic() - began,
        first_step_s,
        news.attempt - attempts_before,
    )


def _warn(folder: RunFolder, warning: str, progress: Progress | None) -> None:
    """On the screen and in warnings.txt, which the report shows."""
    with suppress(OSError), (folder.path / WARNINGS).open("a", encoding="utf-8") as file:
        file.write(warning + "\n")
    if progress:
        progress("said", {"note": f"warning: {warning}"})


def account(folder: RunFolder, plan: Plan) -> dict[str, Any]:
    """Writes accounting.json from what was committed, after checking it against the plan. `left_out` are
    files that could not be planned at all."""
    commit = last_commit(folder.path)
    ledger = Ledger.from_files(commit) if commit else Ledger(plan.hash)
    ledger.check(plan)
    left_out = [row for path in folder.manifests.values() for row in read_left_out(str(path))]
    accounting = {**ledger.accounting_dict(plan), "left_out": left_out}
    write_whole(folder.path / "accounting.json", json.dumps(accounting, indent=1))
    return accounting


def _exported_metrics(cfg: RunConfig, folder: RunFolder) -> RunMetrics:
    """For Prometheus. A resumed run has a last commit from the start, or its age would be unknown."""
    exported = RunMetrics(cfg.name)
    exported.set("planned_steps", cfg.train.steps)
    if commit := last_commit(folder.path):
        exported.set("last_commit_timestamp_seconds", commit.stat().st_mtime)
    return exported


def _is_committed(folder: RunFolder, step: int) -> bool:
    commit = last_commit(folder.path)
    return step == 0 or (commit is not None and read_model_file(commit)["step"] >= step)


def _trainer(cfg: RunConfig, folder: RunFolder, board: Any) -> Any:
    from ray.train import CheckpointConfig, FailureConfig, ScalingConfig
    from ray.train import RunConfig as RayRunConfig
    from ray.train.torch import TorchConfig

    from ray_jobs.lean_trainer import LeanTrainer

    use_gpu = cfg.train.device == "cuda" or (
        cfg.train.device == "auto" and ray.cluster_resources().get("GPU", 0) > 0
    )
    return LeanTrainer(
        train_worker,
        train_loop_config={
            "config": cfg.model_dump_json(),
            "plan": str(folder.plan),
            "commit": str(last_commit(folder.path) or ""),
            "board": board,
            "base": base_of(cfg),
            "expected_version": package_version(),
        },
        torch_config=TorchConfig(backend="nccl" if use_gpu else "gloo"),
        scaling_config=ScalingConfig(
            num_workers=cfg.train.workers,
            use_gpu=use_gpu,
            resources_per_worker=None if use_gpu else {"CPU": 1},
        ),
        run_config=RayRunConfig(
            name=cfg.name,
            storage_path=str(folder.path.parent),
            failure_config=FailureConfig(max_failures=cfg.train.max_failures),
            checkpoint_config=CheckpointConfig(num_to_keep=cfg.train.keep_checkpoints),
        ),
    )


def _ask_to_stop(board: Any, progress: Progress | None) -> None:
    """The workers commit and stop."""
    board.request_stop.remote()
    if progress:
        progress("stopping", {})


def _failure(
    folder: RunFolder, outcome: dict[str, Any] | None, failures: list[str], raised: list[BaseException]
) -> JobError:
    """What broke, the last commit and how to resume."""
    commit = last_commit(folder.path)
    kept = f"last commit: {commit.name}" if commit else "nothing was committed yet"
    resume = f"resume with the same command, or `worldmodel train {folder.path / 'config.yaml'}`"
    if outcome is not None:
        again = resume if DAMAGED_COMMIT not in outcome["reason"] else "then start the same command again"
        return JobError(f"{folder.path.name}: {outcome['reason']}", f"{kept}; {again}")
    reason = (
        failures[0]
        if failures
        else (str(raised[0]).strip().splitlines() or ["no reason given"])[-1]
        if raised
        else "the job ended without a word"
    )
    for error in [*raised, OSError(reason)]:
        if problem := storage_problem(error):
            return JobError(f"{folder.path.name}: {problem}", kept)
    return JobError(f"{folder.path.name}: training broke: {reason.splitlines()[0]}", f"{kept}; {resume}")
