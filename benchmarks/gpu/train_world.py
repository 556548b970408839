"""Train a world model on an embedded world without Ray, DeepSpeed or files of clips: this is
how the shipped one is made.

    export PYTHONPATH=.:tokenizers
    python benchmarks/gpu/train_world.py configs/shipped/bounce.yaml --out runs/shipped

Imports only worldmodel and avtok, so it also runs where neither Ray nor DeepSpeed is. Clips are simulated and
encoded once, by all cores, and kept beside the checkpoints. Stopping at any point and starting again with the
same command goes on from the last checkpoint, and gives the weights that an undisturbed run gives.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import time
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from functools import partial
from itertools import count
from multiprocessing import get_context
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import torch

from avtok.load import codec_folder, codec_spec, load_codec, shipped_codecs
from worldmodel.checks.of_model import check_model
from worldmodel.checks.of_prompts import from_prompts
from worldmodel.checks.prompt_suite import WORLDS as PROMPTED
from worldmodel.checks.prompt_suite import prompt_facts, run_prompt_checks
from worldmodel.config import RunConfig
from worldmodel.export import add_facts, check_facts, load_model, save_model
from worldmodel.layout import Layout
from worldmodel.load_config import config_difference, load_config
from worldmodel.train.checkpoint import load_checkpoint, write_checkpoint
from worldmodel.train.engine import TEACHER_PREFIX, PlainEngine, pick_device
from worldmodel.train.loop import Hooks, Outcome, train
from worldmodel.train.no_compiler import turn_compiler_off
from worldmodel.worlds.clips import HELD_OUT_SEED, WorldClips, make_clips

CLIPS_A_TASK = 32
CHECKPOINT, LOG, LOG_EVERY = "checkpoint", "log.jsonl", 100
WORLDS = ("bounce:5120", "bounce_one:1024")


def main() -> None:
    """See the module's first lines."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("config", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--world", action="append", help=f"NAME:CLIPS, as often as needed; {WORLDS}")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="stop and commit after this long")
    parser.add_argument(
        "--until", type=int, default=10**9, metavar="STEP", help="stop and commit at this step"
    )
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--held-out", type=int, default=64, help="clips for the loss on unseen ones")
    parser.add_argument(
        "--check", type=int, default=0, metavar="EPISODES", help="roll out and check at the end"
    )
    parser.add_argument("--set", dest="overrides", action="append", default=[])
    given = parser.parse_args()
    cfg = load_config(given.config, given.overrides)
    torch.set_num_threads(given.threads)
    if pick_device(cfg.train.device).type == "cpu":  # nothing is compiled there
        turn_compiler_off()
    given.out.mkdir(parents=True, exist_ok=True)
    worlds = [
        (name, int(count)) for name, _, count in (world.partition(":") for world in given.world or WORLDS)
    ]
    clips = prepare_clips(worlds, cfg, given.out / "clips.npz", workers=given.threads)
    held_out = prepare_clips(
        [(worlds[0][0], given.held_out)],
        cfg,
        given.out / "held_out.npz",
        workers=given.threads,
        first=HELD_OUT_SEED,
    )
    asked = "".join(f" --world {world}" for world in given.world or ())
    facts = {
        "made by": f"python benchmarks/gpu/train_world.py {given.config}{asked} --out DIR",
        "clips": ", ".join(f"{count} of world {name}" for name, count in worlds),
    }
    train_world(cfg, clips, held_out, given.out, facts=facts, minutes=given.minutes, until=given.until)
    if given.check:
        seeds = range(2 * HELD_OUT_SEED, 2 * HELD_OUT_SEED + given.check)
        say({"checks": check_export(given.out, cfg, worlds[0][0], seeds)})


def say(row: dict[str, Any]) -> None:
    print(json.dumps(row), flush=True)


def prepare_clips(
    worlds: list[tuple[str, int]], cfg: RunConfig, cache: Path, *, workers: int, first: int = 0
) -> WorldClips:
    """Latents of all clips, from the cache where it answers this very request."""
    specs = [codec_spec(name).content_hash for name in (cfg.codec.video, cfg.codec.audio)]
    sizes = [cfg.model.text_tokens, cfg.model.speech_bytes, cfg.model.action_dim]
    request = json.dumps([worlds, first, specs, cfg.data.clip_s, *sizes])
    if cache.exists():
        with np.load(cache) as stored:
            if str(stored["request"]) == request:
                return WorldClips(*(stored[name] for name in WorldClips.__annotations__))
    tasks = [
        (world, range(start, min(start + CLIPS_A_TASK, first + count)))
        for world, count in worlds
        for start in range(first, first + count, CLIPS_A_TASK)
    ]
    began, parts = time.monotonic(), []
    with ExitStack() as stack:
        run = map  # in this process
        if workers > 1:
            pool = ProcessPoolExecutor(workers, mp_context=get_context("spawn"))
            run = stack.enter_context(pool).map
        for done, part in enumerate(run(partial(_make, cfg), tasks), start=1):
            parts.append(part)
            if done % 16 == 0 or done == len(tasks):
                say({"clips": done * CLIPS_A_TASK, "seconds": round(time.monotonic() - began, 1)})
    clips = WorldClips.join(parts)
    np.savez(cache, request=np.array(request), **{n: getattr(clips, n) for n in WorldClips.__annotations__})
    return clips


def _make(cfg: RunConfig, task: tuple[str, range]) -> WorldClips:
    torch.set_num_threads(1)
    return make_clips(task[0], task[1], cfg, load_codec(cfg.codec.video), load_codec(cfg.codec.audio))


def train_world(
    cfg: RunConfig,
    clips: WorldClips,
    held_out: WorldClips,
    out: Path,
    *,
    facts: dict[str, Any],
    minutes: float = float("inf"),
    until: int = 10**9,
) -> Outcome:
    """Trains from the last checkpoint of `out`; exports the average at each one, with `facts` on its card."""
    if cfg.objective.rep == "repa":
        raise ValueError("objective.rep=repa: a world's clips come without features; use `worldmodel train`")
    layout = Layout.from_specs(cfg, codec_spec(cfg.codec.video), codec_spec(cfg.codec.audio))
    engine = PlainEngine(cfg, layout)
    last, former = out / CHECKPOINT, out / f"{CHECKPOINT}.former"
    if former.is_dir() and not last.is_dir():
        former.rename(last)  # it was stopped between two renames
    check_same(cfg, facts, last)
    start = load_checkpoint(last, engine) if last.is_dir() else 0
    spent, steps = read_spent(out), count(start)
    began = time.monotonic()
    log = _log_until(start, out / LOG)

    def on_row(row: dict[str, float]) -> None:
        row = row | {"minutes": round(spent + (time.monotonic() - began) / 60, 3)}
        log.write(json.dumps(row) + "\n")
        if int(row["step"]) % 50 == 0 or "eval_video" in row:
            log.flush()
            say({key: round(value, 4) for key, value in row.items() if key in SHOWN})

    def commit(step: int) -> None:
        fresh = out / "checkpoint.new"
        shutil.rmtree(fresh, ignore_errors=True)
        fresh.mkdir()
        of_it = {"config": cfg.model_dump(mode="json"), "clips": facts.get("clips")}
        write_checkpoint(fresh, engine, step, {"minutes": spent + (time.monotonic() - began) / 60} | of_it)
        if last.is_dir():
            last.rename(former)
        fresh.rename(last)
        shutil.rmtree(former, ignore_errors=True)
        log.flush()
        export(engine, layout, cfg, out, step, facts)

    hooks = Hooks(
        commit=commit,
        on_row=on_row,
        # Asked once before each step.
        should_stop=lambda: next(steps) >= until or time.monotonic() - began > 60 * minutes,
        evaluation=lambda: held_out.batches(cfg, num_clips=cfg.train.evaluate_clips),
    )
    try:
        return train(engine, clips.stream(cfg, start_step=start), cfg, layout, start_step=start, hooks=hooks)
    finally:
        log.close()


# What may change between two starts.
FREE = (
    "rollout.",
    "train.evaluate",
    "train.checkpoint_every",
    "train.device",
    "train.compile",
    "train.threads",
)


def check_same(cfg: RunConfig, facts: dict[str, Any], checkpoint: Path) -> None:
    """ValueError where a checkpoint was trained with another config or other clips."""
    model = checkpoint / "model.json"
    known = json.loads(model.read_text()) if model.exists() else {}
    if "config" not in known:
        return
    differing = config_difference(RunConfig.model_validate(known["config"]), cfg)
    differing = [line for line in differing if not line.startswith(FREE)]
    if known["clips"] != facts.get("clips"):
        differing.append(f"clips: {known['clips']} -> {facts.get('clips')}")
    if differing:
        raise ValueError(f"{checkpoint} was trained with others ({'; '.join(differing)}); give another --out")


SHOWN = (
    "step",
    "loss",
    "loss_video",
    "loss_audio",
    "grad_norm",
    "step_s",
    "minutes",
    "eval_video",
    "eval_audio",
)


def read_spent(out: Path) -> float:
    """Minutes of training so far."""
    model = out / CHECKPOINT / "model.json"
    return float(json.loads(model.read_text()).get("minutes", 0.0)) if model.exists() else 0.0


def export(
    engine: PlainEngine, layout: Layout, cfg: RunConfig, out: Path, step: int, facts: dict[str, Any]
) -> None:
    """The averaged weights in half the bytes, the log and, unless they ship with the package, the codecs."""
    folder = out / "export"
    weights = {
        name.removeprefix(TEACHER_PREFIX): w.cpu().to(torch.bfloat16) for name, w in engine.ema.items()
    }
    device = torch.cuda.get_device_name() if engine.device.type == "cuda" else "CPU"
    minutes = round(read_spent(out), 1)
    run = {"steps": step, "training minutes": minutes, "device": device, "seed": cfg.seed}
    save_model(folder, weights, layout, cfg, facts | run)
    _copy_log(out / LOG, folder / LOG)
    for modality, name in (("video", cfg.codec.video), ("audio", cfg.codec.audio)):
        if name not in shipped_codecs():
            shutil.copytree(codec_folder(name), folder / "codecs" / modality, dirs_exist_ok=True)


def _log_until(step: int, path: Path) -> TextIO:
    """The log, open to go on with `step`: what was trained after the last checkpoint is trained again."""
    lines = path.read_text("utf-8").splitlines() if path.exists() else []
    rows = [json.loads(line) for line in lines if line.endswith("}")]  # a kill may leave half a line
    kept = [row for row in rows if row["step"] < step + ("eval_video" in row)]  # that one follows its step
    path.write_text("".join(json.dumps(row) + "\n" for row in kept), "utf-8")
    return path.open("a", encoding="utf-8")


def _copy_log(log: Path, to: Path) -> None:
    """Every 100th step and every evaluation."""
    rows = log.read_text("utf-8").splitlines()
    kept = [row for row in rows if "eval_video" in row or json.loads(row)["step"] % LOG_EVERY == 0]
    to.write_text("\n".join(kept) + "\n", "utf-8")


def check_export(out: Path, cfg: RunConfig, world: str, seeds: range) -> dict[str, Any]:
    """The checks of the exported model on episodes that it never saw: rolled out where bodies move, and from
    prompts alone where captions say enough."""
    model, _, _ = load_model(out / "export")
    device = "cuda" if torch.cuda.is_available() and cfg.train.device != "cpu" else "cpu"
    video, audio = load_codec(cfg.codec.video), load_codec(cfg.codec.audio)
    found: dict[str, Any] = {}
    said: dict[str, Any] = {}
    facts = {"checked on": f"{len(seeds)} episodes of {world}"}
    if world != "talker":
        found = check_model(model.to(device), cfg, video, audio, world=world, seeds=seeds, device=device)
        facts = check_facts(found) | facts
        said = {"position_error_025s_over_frozen": found["position_error_025s_over_frozen"]}
        said |= {name: check.get("value") for name, check in found["checks"].items()}
    if world in PROMPTED:
        prompted = from_prompts(model.to("cpu"), cfg, video, audio, world=world, seeds=seeds)
        prompts = run_prompt_checks(prompted, world=world, fps=cfg.data.fps, sample_rate=cfg.data.sample_rate)
        lines = prompt_facts(prompts)
        found["prompts"], facts, said = prompts, facts | lines, said | lines
    (out / "checks.json").write_text(json.dumps(found, indent=1))
    add_facts(out / "export", cfg, facts)
    return said


if __name__ == "__main__":
    main()
