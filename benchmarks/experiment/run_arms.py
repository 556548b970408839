"""Trains the arms that have not been trained yet, asks each, and keeps the answers.

A run that is stopped goes on from its last checkpoint. What it is trained with and what it was asked are kept
beside it: another config or other clips are another run, and other questions are asked of the average that is
kept. Clips are made once for all runs.
"""

from __future__ import annotations

import ctypes
import hashlib
import json
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict
from functools import cache
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from benchmarks.experiment.arms import (
    ARMS,
    SELF_FLOW,
    Run,
    Tier,
    compared_runs,
    config_of,
    flops_of_step,
    layout_of,
    tuning_runs,
)
from benchmarks.experiment.readouts import (
    Questions,
    answers,
    questions_of_clips,
    questions_of_world,
    weighted_loss,
)
from benchmarks.gpu.train_world import CHECKPOINT, LOG, prepare_clips, train_world
from worldmodel.config import RunConfig
from worldmodel.model.transformer import WorldTransformer
from worldmodel.train.checkpoint import CheckpointReader
from worldmodel.train.engine import pick_device
from worldmodel.train.loop import EVALUATED_T, TrainingDiverged
from worldmodel.train.no_compiler import turn_compiler_off
from worldmodel.worlds.clips import HELD_OUT_SEED, WorldClips

PR_SET_PDEATHSIG = 1  # of Linux: a signal for a process whose parent died

RESULT, AVERAGE, TRAINED_AS = "result.json", "average.safetensors", "trained_as.txt"
# Raised with any change to what a config means in training, and to what a trained arm is asked: results from
# before are not taken.
TRAINING, QUESTIONS = 2, 2
Result = dict[str, Any]


def run_experiment(
    tier: Tier,
    out: Path,
    *,
    minutes: float,
    workers: int,
    say: Callable[[str], None],
    known: Iterable[Result] = (),
) -> list[Result]:
    """All results there are when the time is up or everything ran. known: of an earlier start elsewhere."""
    ends_at = time.monotonic() + 60 * minutes
    out.mkdir(parents=True, exist_ok=True)
    for result in known:
        _take(tier, result, out)
    found: dict[Run, Result] = {}
    for size in tier.sizes:
        wanted = tuning_runs(tier, size)
        tuned = _run_all(tier, wanted, out, ends_at=ends_at, workers=workers, say=say)
        found |= tuned
        if len(tuned) < len(wanted):
            break
        rate = best_learning_rate(tier, list(tuned.values()))
        say(f"{size.name}: learning rate {rate:g}")
        runs = compared_runs(tier, size, rate)
        found |= _run_all(tier, runs, out, ends_at=ends_at, workers=workers, say=say)
    return list(found.values())


def best_learning_rate(tier: Tier, tuned: list[Result]) -> float:
    """The best of those that flow matching was trained with."""
    losses = {result["learning_rate"]: result["loss"] for result in tuned if "diverged" not in result}
    return min(losses, key=lambda rate: losses[rate]) if losses else tier.learning_rates[0]


def _run_all(
    tier: Tier, runs: list[Run], out: Path, *, ends_at: float, workers: int, say: Callable[[str], None]
) -> dict[Run, Result]:
    found = {run: result for run in runs if (result := finished(tier, run, out))}
    missing = [run for run in runs if run not in found]
    say(f"{len(found)} of {len(runs)} runs are there")
    if not missing or time.monotonic() >= ends_at:
        return found
    _prepare(tier, out)
    with pool_of(workers) as pool:
        waiting = {pool.submit(run_arm, tier, run, out, ends_at): run for run in missing}
        for done in as_completed(waiting):
            try:
                result = done.result()
            except BaseException:
                pool.shutdown(cancel_futures=True)  # else all that wait would run first
                raise
            if result:
                found[waiting[done]] = result
                told = result.get("diverged") or f"loss {result['loss']:.4f}"
                say(f"{len(found)} of {len(runs)}: {waiting[done].name}: {told}")
    return found


def pool_of(workers: int) -> ProcessPoolExecutor:
    """Processes that end when this one does, however it ends; each run keeps what it had committed."""
    spawn, own = get_context("spawn"), (os.getpid(),)
    return ProcessPoolExecutor(workers, mp_context=spawn, initializer=_end_with_parent, initargs=own)


def _end_with_parent(parent: int) -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:  # it ended while this process began
        os._exit(1)


def finished(tier: Tier, run: Run, out: Path) -> Result | None:
    """The result of a run with this very config, if there is one."""
    path = out / run.name / RESULT
    if not path.exists():
        return None
    result = json.loads(path.read_text())
    return result if result["asked"] == _asked(tier, config_of(tier, run)) else None


def run_arm(tier: Tier, run: Run, out: Path, ends_at: float) -> Result | None:
    """Trains and asks one arm in this process, on one CPU thread or the GPU; None when the time is up."""
    if time.monotonic() >= ends_at:
        return None
    cfg, folder = config_of(tier, run), out / run.name
    device = pick_device(cfg.train.device)
    torch.set_num_threads(1)
    if device.type == "cpu":  # nothing is compiled there
        turn_compiler_off()
    try:
        average = _trained(tier, cfg, out, folder, ends_at)
    except TrainingDiverged as error:
        result = {**asdict(run), "asked": _asked(tier, cfg), "diverged": str(error)}
        _keep(out, result)
        return result
    if average is None:
        return None
    _, _, questions = _prepare(tier, out)
    model = WorldTransformer(cfg.model, layout_of(cfg))
    model.load_state_dict(average)
    model = model.eval().requires_grad_(False).to(device)
    result = {
        **asdict(run),
        "asked": _asked(tier, cfg),
        "steps": cfg.train.steps,
        "flops_per_step": flops_of_step(cfg),
        "parameters": sum(p.numel() for p in model.parameters()),
        **_curves(folder / LOG, cfg),
        **answers(model, cfg, questions),
    }
    _keep(out, result)
    return result


def _trained(
    tier: Tier, cfg: RunConfig, out: Path, folder: Path, ends_at: float
) -> dict[str, torch.Tensor] | None:
    """The averaged weights, as they were kept or trained now; None when the time is up before."""
    identity, mark = _trained_as(tier, cfg), folder / TRAINED_AS
    if folder.exists() and (not mark.exists() or mark.read_text() != identity):
        shutil.rmtree(folder)  # of another config, or of other clips
    folder.mkdir(parents=True, exist_ok=True)
    mark.write_text(identity)
    if not (folder / AVERAGE).exists():
        clips, held_out, _ = _prepare(tier, out)
        left = (ends_at - time.monotonic()) / 60
        if train_world(cfg, clips, held_out, folder, facts={}, minutes=left).status != "finished":
            return None
        save_file(CheckpointReader(folder / CHECKPOINT).ema_weights(), folder / f"{AVERAGE}.partial")
        (folder / f"{AVERAGE}.partial").replace(folder / AVERAGE)
        for name in (CHECKPOINT, "export"):
            shutil.rmtree(folder / name, ignore_errors=True)
    return load_file(folder / AVERAGE)


@cache
def _prepare(tier: Tier, out: Path) -> tuple[WorldClips, WorldClips, Questions]:
    """Clips are the same for all sizes and arms."""
    cfg = config_of(tier, Run(tier.sizes[0].name, SELF_FLOW, 0, tier.learning_rates[0]))
    if tier.world is None:
        from benchmarks.experiment.manifest_clips import clips_of_manifest  # Ray: a GPU machine may lack it

        assert tier.prepared is not None, "see prepare_manifest"
        clips, held_out = clips_of_manifest(tier.prepared)
        return clips, held_out, questions_of_clips(cfg, clips, held_out)
    clips = prepare_clips([(tier.world, tier.clips)], cfg, out / "clips.npz", workers=1)
    held_out = prepare_clips(
        [(tier.world, tier.held_out)], cfg, out / "held_out.npz", workers=1, first=HELD_OUT_SEED
    )
    return clips, held_out, questions_of_world(tier.world, cfg, clips, held_out, tier.episodes)


def _curves(log: Path, cfg: RunConfig) -> Result:
    """Held-out loss on the way, [step, loss]; the last cosine and rank of what features follow; time."""
    rows = [json.loads(line) for line in log.read_text("utf-8").splitlines()]
    curve = [
        [
            row["step"],
            weighted_loss(
                {m: [row[f"eval_{m}_t{t}"] for t in EVALUATED_T] for m in ("video", "audio")},
                cfg,
                EVALUATED_T,
            ),
        ]
        for row in rows
        if "eval_video" in row
    ]
    steps = [row for row in rows if "step_s" in row]
    shown = {
        k: v for k, v in steps[-1].items() if k.startswith(("cosine_", "teacher_rank_")) and "_t0" not in k
    }
    return {"curve": curve, "features": shown, "train_s": sum(row["step_s"] for row in steps)}


def _trained_as(tier: Tier, cfg: RunConfig) -> str:
    """Of the config and the clips."""
    said = cfg.model_dump(mode="json", exclude_defaults=True)  # settings that came later change nothing
    clips = tier.prepared.name if tier.prepared else [tier.world, tier.clips]
    return _hash([TRAINING, said, clips])


def _asked(tier: Tier, cfg: RunConfig) -> str:
    """Of training and of what was asked: results of another are not taken."""
    return _hash([_trained_as(tier, cfg), QUESTIONS, tier.held_out, tier.episodes])


def _hash(what: list[Any]) -> str:
    return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:16]


def _take(tier: Tier, result: Result, out: Path) -> None:
    """A result from elsewhere, where it is one of this tier and there is none yet."""
    run = Run(*(result[name] for name in Run.__dataclass_fields__))
    if run.size not in {size.name for size in tier.sizes} or run.arm not in ARMS or finished(tier, run, out):
        return
    if result["asked"] == _asked(tier, config_of(tier, run)):
        _keep(out, result)


def _keep(out: Path, result: Result) -> None:
    run = Run(*(result[name] for name in Run.__dataclass_fields__))
    path = out / run.name / RESULT
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(result))
    partial.replace(path)
