"""What a step of Self-Flow and of each rival costs over plain flow matching's, and what a teacher weighs.

All arms train one after the other in one process, a step each in turn, on the same latents with the same
threads and dtypes; a figure is the median of the ratios of neighbouring steps. Prediction: a teacher's
forward to 0.7 of the depth is 0.7 of one of three forwards' worth, so 1.23 (1.24 with its share of the
inputs), 1.0 for what needs no teacher; 4 bytes of fp32 average and 2 of bf16 weights a parameter. Outcome:
1.27, for 0.7 of eight blocks is six (1.25), and features are compared in fp32. (1.30 while each timed step
counted its FLOPs.)
"""

from __future__ import annotations

import sys
import time
from statistics import median
from typing import Any

import torch

from ray_jobs.bench import Measured
from ray_jobs.runtime_env import ROOT

if str(ROOT) not in sys.path:
    sys.path.append(str(ROOT))

from benchmarks.makers.latents import random_batch

THREADS, ROUNDS = 2, 21
ARMS: dict[str, list[str]] = {
    "flow_matching": ["objective.rep=none", "objective.dual=false"],
    "self_flow": [],
    "dual_levels_only": ["objective.rep=none"],
    "sra": ["objective.dual=false", "objective.teacher_t=offset"],
    "layersync": ["objective.rep=layersync", "objective.dual=false"],
    "velocity_heads": ["objective.rep=velocity_heads", "objective.dual=false"],
    "attention_separation": ["objective.attention_separation=true"],
}
SMOKE = ["model.depth=3", "model.width=64", "model.head_dim=32", "data.batch_clips=2"]
# fp32: on CPUs without bf16 units rounding would be most of what is timed.
SIZE = ["data.batch_clips=2", "train.micro_batches=1", "train.device=cpu", "train.precision=fp32"]


def run(smoke: bool) -> Measured:
    """Interleaved steps of av_25m."""
    from avtok.load import codec_spec
    from worldmodel.layout import Layout
    from worldmodel.load_config import dump_config, load_config
    from worldmodel.train.engine import PlainEngine

    torch.set_num_threads(THREADS)
    arms = {
        name: load_config(ROOT / "configs" / "av_25m.yaml", [*SIZE, *extra, *(SMOKE if smoke else [])])
        for name, extra in ARMS.items()
    }
    cfg = arms["self_flow"]
    layout = Layout.from_specs(cfg, codec_spec(cfg.codec.video), codec_spec(cfg.codec.audio))
    steps = {name: _Steps(PlainEngine(own, layout), own, layout) for name, own in arms.items()}
    seconds: dict[str, list[float]] = {name: [] for name in arms}
    for number in range(1 + (2 if smoke else ROUNDS)):
        for name, step in steps.items():
            took = step()
            if number:  # the first one warms up
                seconds[name].append(took)
    plain = seconds["flow_matching"]
    ratios = {
        name: median(own / base for own, base in zip(seconds[name], plain, strict=True)) for name in arms
    }
    in_bf16 = cfg.model_copy(update={"train": cfg.train.model_copy(update={"precision": "bf16"})})
    teacher_bytes = _teacher_bytes(PlainEngine(in_bf16, layout))
    figures = {"selfflow_over_fm_step": ratios["self_flow"], "teacher_bytes_per_parameter": teacher_bytes}
    figures |= {f"{name}_over_fm_step": ratio for name, ratio in ratios.items() if name in RIVALS}
    return Measured(
        figures=figures,
        raw={"seconds": seconds, "parameters": {n: _parameters(s.engine) for n, s in steps.items()}},
        n=len(plain),
        baseline={"flow_matching_step_s": median(plain)},
        config=dump_config(cfg),
        log="".join(f"{name}: {ratio:.3f} of a step of flow matching\n" for name, ratio in ratios.items()),
    )


RIVALS = tuple(name for name in ARMS if name not in ("flow_matching", "self_flow"))


class _Steps:
    """One arm: called for its next step, it says how long that took."""

    def __init__(self, engine: Any, cfg: Any, layout: Any) -> None:
        self.engine, self.cfg, self.layout, self.done = engine, cfg, layout, 0
        self.batch = random_batch(layout, cfg.data.batch_clips, 0)

    def __call__(self) -> float:
        from worldmodel.train.loop import Hooks, train

        first, self.done = self.done, self.done + 1
        own = self.cfg.train.model_copy(update={"steps": first + 1, "checkpoint_every": 10**9})
        cfg = self.cfg.model_copy(update={"train": own})
        hooks = Hooks(commit=lambda step: None)
        began = time.perf_counter()
        train(self.engine, iter([[self.batch]]), cfg, self.layout, start_step=first, hooks=hooks)
        return time.perf_counter() - began


def _parameters(engine: Any) -> int:
    return sum(p.numel() for p in engine.student.parameters())


def _teacher_bytes(engine: Any) -> float:
    """Bytes of the average and of the weights that run, over their parameters."""
    weights = list(engine.teacher.parameters())
    tensors = [*engine.ema.values(), *weights]
    return sum(t.numel() * t.element_size() for t in tensors) / sum(p.numel() for p in weights)
