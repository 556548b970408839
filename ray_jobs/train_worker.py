"""What one training worker does: engine, stream, loop, commits."""

from __future__ import annotations

import logging
import os
import time
import warnings
from dataclasses import asdict
from pathlib import Path
from typing import Any

import ray
import ray.train
import torch
import torch.distributed as dist

from avtok.load import codec_spec
from ray_jobs.accounting import Ledger
from ray_jobs.commits import Commits, tell_why
from ray_jobs.dataset import held_out_batches, rank_stream
from ray_jobs.errors import JobError
from ray_jobs.plan import Plan
from ray_jobs.run_folder import SNAPSHOT
from ray_jobs.runtime_env import package_version
from worldmodel.batch import LatentBatch
from worldmodel.config import RunConfig
from worldmodel.layout import Layout
from worldmodel.train.checkpoint import CheckpointMismatch, load_checkpoint
from worldmodel.train.engine import pick_device
from worldmodel.train.engines import distributed_engine
from worldmodel.train.hand_round import hand_round
from worldmodel.train.loop import Hooks, TrainingDiverged, train
from worldmodel.train.no_compiler import turn_compiler_off

POLL_S = 0.2
FAILPOINT = "WORLDMODEL_FAILPOINT"  # "kill:rankR:stepS" kills that worker once, for tests of recovery


class CannotBuild(ValueError):
    """The engine cannot be built here; no restart helps."""


def layout_of(cfg: RunConfig) -> Layout:
    return Layout.from_specs(cfg, codec_spec(cfg.codec.video), codec_spec(cfg.codec.audio))


def train_worker(settings: dict[str, Any]) -> None:
    """Runs on every rank under TorchTrainer. settings: config (JSON), plan (path), commit (folder to go on
    from, or empty), board (actor), expected_version."""
    _quiet()
    cfg = RunConfig.model_validate_json(settings["config"])
    torch.set_num_threads(cfg.train.threads)
    asks_for_it = cfg.train.lora or cfg.data.targets  # imports of peft, and of transformers' encoders
    if pick_device(cfg.train.device).type == "cpu" and not asks_for_it:
        turn_compiler_off()
    board = settings["board"]
    context = ray.train.get_context()
    rank, world_size = context.get_world_rank(), context.get_world_size()
    if (mine := package_version()) != settings["expected_version"]:
        raise RuntimeError(
            f"rank {rank} has worldmodel {mine}, the driver {settings['expected_version']}: install the same"
        )
    attempt = _attempt(board, rank)
    if not attempt:
        return  # Ray restarts a group after any error, also after one that no restart can mend
    try:
        _train(cfg, settings, board, attempt, rank, world_size)
    except TrainingDiverged as error:  # the same on every rank, and a restart would meet it again
        if rank == 0:
            _end(board, error)
    except (CheckpointMismatch, CannotBuild) as error:
        # These too, but they may be this rank's alone: raised, so that Ray ends those that wait for it.
        _end(board, error)
        raise
    except Exception as error:
        tell_why(board, rank, error)
        raise


def _train(
    cfg: RunConfig, settings: dict[str, Any], board: Any, attempt: int, rank: int, world_size: int
) -> None:
    layout = layout_of(cfg)
    local_rank = ray.train.get_context().get_local_rank()
    shared = cfg.train.sequence_parallel  # workers that train on the same clips
    data_rank, data_world_size = rank // shared, world_size // shared
    per_step = -(-cfg.train.micro_batches // data_world_size)
    device = pick_device(cfg.train.device, local_rank)
    try:
        engine = distributed_engine(cfg, layout, micro_batches=per_step, device=device)
    except ValueError as error:  # this machine or model cannot do what the config asks for
        raise CannotBuild(str(error)) from error
    if not _plan_is_there(board):
        return
    plan = Plan.load(settings["plan"])
    start_step, ledger = 0, Ledger(plan.hash)
    given = settings["commit"]  # Ray forgets commits when its list was cut short
    if checkpoint := ray.train.get_checkpoint() or (given and ray.train.Checkpoint.from_directory(given)):
        with checkpoint.as_directory() as folder:
            start_step = load_checkpoint(Path(folder), engine)
            committed = _committed_ledger(folder, plan)
        ledger = committed if rank == 0 else Ledger(plan.hash, committed.position)
    commits = Commits(cfg, engine, ledger, attempt, board, settings["base"])
    held_out: list[LatentBatch] = []

    def evaluation() -> list[LatentBatch]:
        if not held_out:
            held_out.extend(
                held_out_batches(
                    plan,
                    cfg,
                    num_clips=cfg.train.evaluate_clips,
                    rank=data_rank,
                    world_size=data_world_size,
                )
            )
        return held_out

    stream = None
    if engine.leads:
        steps = {"start_step": start_step, "end_step": cfg.train.steps}
        stream = rank_stream(plan, cfg, **steps, rank=data_rank, world_size=data_world_size)
    stream = hand_round(stream, engine.ranks)
    hooks = Hooks(
        commit=commits.commit,
        consumed=commits.consumed,
        on_row=(lambda row: _post(board, row)) if rank == 0 else (lambda row: None),
        should_stop=StopRequest(board, attempt, rank),
        evaluation=evaluation if cfg.train.evaluate_clips and len(plan.held_out_ids) else None,
    )
    enough = min(64, plan.num_train)
    outcome = train(engine, stream, cfg, layout, start_step=start_step, hooks=hooks, enough_clips=enough)
    commits.wait()
    if rank == 0:
        ray.get(board.ended.remote(asdict(outcome)))


def _end(board: Any, error: Exception) -> None:
    """The job ends, the last commit stays."""
    ray.get(board.ended.remote({"status": "failed", "step": -1, "reason": str(error)}))


def _plan_is_there(board: Any) -> bool:
    """Waits for the driver, which may still be making the clips; False when it gave up."""
    while True:
        there: bool | None = ray.get(board.plan_is_there.remote())
        if there is not None:
            return there
        time.sleep(POLL_S)


def _committed_ledger(folder: str, plan: Plan) -> Ledger:
    try:
        ledger = Ledger.from_files(folder)
        ledger.check(plan)
    except JobError as error:
        raise CheckpointMismatch(str(error)) from None
    return ledger


class StopRequest:
    """Asks the board without waiting: rank 0's answer reaches all ranks through the step's all-reduce."""

    def __init__(self, board: Any, attempt: int, rank: int) -> None:
        self.board, self.rank, self.steps = board, rank, 0
        self.answer = board.stop_requested.remote() if rank == 0 else None
        self.failpoint = os.environ.get(FAILPOINT, "") if attempt == 1 else ""

    def __call__(self) -> bool:
        if self.failpoint == f"kill:rank{self.rank}:step{self.steps}":
            _wait_for_a_listed_commit()
            os.kill(os.getpid(), 9)
        self.steps += 1
        if self.answer is None:
            return False
        ready, _ = ray.wait([self.answer], timeout=0)
        if not ready:
            return False
        stop = bool(ray.get(self.answer))
        self.answer = self.board.stop_requested.remote()
        return stop


def _wait_for_a_listed_commit() -> None:
    """Ray Train hears of commits now and then: on a fast machine a kill would come before the first."""
    storage: Any = ray.train.get_context().get_storage()
    listed, deadline = Path(storage.experiment_fs_path) / SNAPSHOT, time.monotonic() + 60
    while not listed.exists() and time.monotonic() < deadline:
        time.sleep(POLL_S)


def _post(board: Any, row: dict[str, float]) -> None:
    board.post.remote(row)


def _attempt(board: Any, rank: int) -> int:
    """The number of this worker group, the same on every rank."""
    number = torch.tensor(
        ray.get(board.new_attempt.remote()) if rank == 0 else 0, device=_collective_device()
    )
    dist.broadcast(number, src=0)
    return int(number)


def _collective_device() -> torch.device:
    """Where the process group's backend expects tensors."""
    return torch.device("cuda" if dist.get_backend() == "nccl" else "cpu")


def _quiet() -> None:
    warnings.filterwarnings("ignore")
    for name in ("ray.train", "ray.data", "DeepSpeed", "torch"):
        logging.getLogger(name).setLevel(logging.ERROR)
