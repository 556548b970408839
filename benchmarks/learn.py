"""What the recipe learns within an hour of CPU time, and what each of its choices is worth.

One process without Ray, one thread: clips of `bounce_one` are simulated and encoded, a model of the demo's
size is trained for what is left of 40 CPU minutes (the promise is 60), and 128 held-out episodes are
continued and checked.
Variants change one thing each and get the same 400 steps; they are compared by errors of the predicted last
chunk at t=0.9 with clean history, which tell after minutes what rollouts tell after an hour.

Prediction: the demo's recipe reached a ratio of 0.39 after 8 CPU minutes, so below 0.3 after 40; without the
stem the error of 400 steps is half as large again.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterable
from functools import cache
from typing import Any

import torch

from avtok.load import codec_spec, load_codec
from ray_jobs.bench import Measured
from ray_jobs.processor import has_bf16_units
from ray_jobs.runtime_env import ROOT
from worldmodel.checks.of_model import check_model, history_error
from worldmodel.config import OptimConfig, RunConfig
from worldmodel.layout import Layout
from worldmodel.load_config import dump_config, load_config
from worldmodel.train import engine as engines
from worldmodel.train.engine import TEACHER_PREFIX, PlainEngine, build_student
from worldmodel.train.loop import Hooks, train
from worldmodel.train.no_compiler import turn_compiler_off
from worldmodel.worlds.clips import HELD_OUT_SEED, WorldClips, make_clips

WORLD, VARIANT_CLIPS, CLIPS, HELD_OUT, EPISODES, THREADS = "bounce_one", 1024, 4096, 64, 128, 1
CPU_MINUTES, VARIANT_STEPS = 40.0, 400
SHOWN = ("step", "loss_video", "loss_audio", "step_s")
# What is left out or exchanged, one at a time.
VARIANTS: dict[str, list[str]] = {
    "recipe": [],
    "no causal stem": ["model.causal_stem=false"],
    "clean history in 6 of 10 rows": [
        "objective.noise.history_rows=0.6",
        "objective.noise.independent_rows=0.3",
    ],
    "v-prediction": ["objective.prediction=v"],
    "x-prediction, full weight of small t": ["objective.loss_min_t=0.05"],
    "no Self-Flow (plain flow matching)": ["objective.rep=none", "objective.dual=false"],
    "principal components and log-mel": ["codec.video=pca-4x8x8-48", "codec.audio=logmel-64"],
    "one audio latent a token": ["model.audio_patch=1"],
    "depth 6": ["model.depth=6"],
    "sound under a clean picture in 3 of 10 rows": [
        *("objective.noise.tied=0.2", "objective.noise.independent=0.2"),
    ],
    "batch 16, half the steps": ["data.batch_clips=8", f"train.steps={VARIANT_STEPS // 2}"],
    "Muon for matrices": [],
}


def run(smoke: bool) -> Measured:
    torch.set_num_threads(THREADS)
    turn_compiler_off()
    log: list[str] = []

    def say(line: str) -> None:
        log.append(line)
        print(line, file=sys.stderr, flush=True)

    variants = {}
    for name in ("recipe", "Muon for matrices") if smoke else VARIANTS:
        variants[name] = _variant(name, steps=3 if smoke else VARIANT_STEPS, smoke=smoke, say=say)
        say(json.dumps({"variant": name, **variants[name]}))

    began = _cpu_minutes()
    clips = _clips(_recipe([]), 16 if smoke else CLIPS)
    left = CPU_MINUTES - (_cpu_minutes() - began)
    cfg = _recipe([f"train.steps={3 if smoke else _affordable(variants['recipe'], left)}"])
    engine = _train(cfg, clips, None, say=say)
    cpu_minutes = _cpu_minutes() - began
    seeds = range(2 * HELD_OUT_SEED, 2 * HELD_OUT_SEED + (4 if smoke else EPISODES))
    video, audio = load_codec(cfg.codec.video), load_codec(cfg.codec.audio)
    checks = check_model(_average(engine, cfg), cfg, video, audio, world=WORLD, seeds=seeds)
    position, onset = checks["checks"]["position_error"], checks["checks"]["onset_f1"]
    return Measured(
        figures={
            "position_error_025s_over_frozen": checks["position_error_025s_over_frozen"],
            "onset_f1_gain_ci_low": checks["onset_f1_gain_ci_low"],
            "cpu_minutes": cpu_minutes,
            "variants": {
                name: {"picture": found["with_history"], "sound": found["sound_with_picture"]}
                for name, found in variants.items()
            },
        },
        raw={"variants": variants, "checks": checks, "steps": cfg.train.steps},
        n=len(seeds),
        baseline={"position": position.get("baselines"), "onset_f1": onset.get("baselines")},
        config=dump_config(cfg),
        log="\n".join(log) + "\n",
    )


def _recipe(overrides: list[str]) -> RunConfig:
    """The demo's, on this machine's CPU."""
    slow = [] if has_bf16_units() else ["train.precision=fp32"]
    return load_config(ROOT / "configs" / "demo.yaml", ["train.device=cpu", *slow, *overrides])


def _variant(name: str, *, steps: int, smoke: bool, say: Callable[[str], None]) -> dict[str, float]:
    cfg = _recipe([f"train.steps={steps}", *VARIANTS[name]])
    clips = _clips(cfg, 16 if smoke else VARIANT_CLIPS)
    held_out_clips = 8 if smoke else HELD_OUT
    held_out = _clips(cfg, held_out_clips, first=HELD_OUT_SEED)
    began = _cpu_minutes()
    engine = _train(cfg, clips, _muon if name.startswith("Muon") else None, say=say)
    minutes = _cpu_minutes() - began
    error = history_error(_average(engine, cfg), held_out.batches(cfg, num_clips=held_out_clips), cfg)
    return {**error, "steps": cfg.train.steps, "cpu_minutes": minutes}


def _cpu_minutes() -> float:
    return time.process_time() / 60


def _affordable(measured: dict[str, float], minutes: float) -> int:
    """Steps of the recipe in these minutes, as the variant has shown; in whole hundreds."""
    return int(0.97 * minutes / measured["cpu_minutes"] * measured["steps"] / 100) * 100


@cache
def _encoded(video: str, audio: str, clip_s: float, count: int, first: int) -> WorldClips:
    cfg = _recipe([f"codec.video={video}", f"codec.audio={audio}", f"data.clip_s={clip_s}"])
    seeds = range(first, first + count)
    return make_clips(WORLD, seeds, cfg, load_codec(cfg.codec.video), load_codec(cfg.codec.audio))


def _clips(cfg: RunConfig, count: int, *, first: int = 0) -> WorldClips:
    return _encoded(cfg.codec.video, cfg.codec.audio, cfg.data.clip_s, count, first)


def _train(
    cfg: RunConfig, clips: WorldClips, optimizer: Callable[..., Any] | None, *, say: Callable[[str], None]
) -> PlainEngine:
    layout = Layout.from_specs(cfg, codec_spec(cfg.codec.video), codec_spec(cfg.codec.audio))
    usual = engines.build_optimizer
    engines.build_optimizer = optimizer or usual
    try:
        engine = PlainEngine(cfg, layout)
    finally:
        engines.build_optimizer = usual

    def on_row(row: dict[str, float]) -> None:
        if int(row["step"]) % 50 == 0:
            say(json.dumps({key: round(row[key], 4) for key in SHOWN if key in row}))

    hooks = Hooks(commit=lambda step: None, on_row=on_row)
    train(engine, clips.stream(cfg), cfg, layout, start_step=0, hooks=hooks)
    return engine


def _average(engine: PlainEngine, cfg: RunConfig) -> torch.nn.Module:
    """The averaged weights in fp32."""
    layout = Layout.from_specs(cfg, codec_spec(cfg.codec.video), codec_spec(cfg.codec.audio))
    model = build_student(cfg, layout).transformer
    model.load_state_dict({name.removeprefix(TEACHER_PREFIX): w for name, w in engine.ema.items()})
    return model.eval().requires_grad_(False)


class _muon:  # noqa: N801
    """torch's Muon for the matrices of the blocks, AdamW for all else; one learning rate moves both."""

    def __init__(self, parameters: Iterable[torch.Tensor], cfg: OptimConfig) -> None:
        everything = list(parameters)
        matrices = [p for p in everything if p.ndim == 2 and min(p.shape) >= 64]
        chosen = {id(p) for p in matrices}
        self.muon = torch.optim.Muon(matrices, lr=cfg.lr, weight_decay=0.0, adjust_lr_fn="match_rms_adamw")
        others = [p for p in everything if id(p) not in chosen]
        self.adam = torch.optim.AdamW(others, lr=cfg.lr, betas=cfg.betas, weight_decay=0.0, fused=True)
        self.param_groups = [*self.muon.param_groups, *self.adam.param_groups]

    def step(self) -> None:
        self.muon.step()
        self.adam.step()
