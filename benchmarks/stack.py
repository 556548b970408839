"""What Ray and DeepSpeed cost one worker: steps/s of the job over those of a bare PyTorch loop.

Both run in one worker process under Ray Train, with the same threads, dtypes, model and clips, in turn: a
segment of the job (ZeRO-3 engine, our loop, cached latents through Ray Data) and a segment of the bare loop
(plain modules, batches already in memory). A figure is the median over pairs of segments.

Prediction: DeepSpeed alone measured 0.84 at 6 million parameters; its hooks and gathers cost the same at any
size, so 0.84 and 0.95. Outcome: its copies of gradients grow with the size (0.88 and 0.78); with one scatter
a step 0.97 and 0.97. Without bf16 units both train in fp32, or rounding would be most of what is timed.
When the loop had learned to count its FLOPs, once a run and half a second long, segments that were runs of
their own said 0.91 and 0.79; they are parts of one run now: 0.94 and 0.97.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any

from ray_jobs.bench import Measured
from ray_jobs.errors import JobError
from ray_jobs.processor import has_bf16_units
from ray_jobs.runtime_env import ROOT

THREADS, PAIRS, CLIPS = 2, 7, 32
STEPS = {"debug": 16, "25m": 4}  # of one segment
CONFIGS = {"debug": "debug_cpu.yaml", "25m": "av_25m.yaml"}
RESULT = "stack.json"


def run(smoke: bool) -> Measured:
    from ray_jobs.cluster import connect
    from ray_jobs.dataset import local_stream
    from ray_jobs.index import index_sources
    from ray_jobs.plan import make_plan
    from ray_jobs.render import render_clip
    from worldmodel.load_config import dump_config, load_config

    ratios: dict[str, list[float]] = {}
    raw: dict[str, Any] = {}
    configs = []
    slow = [] if has_bf16_units() else ["train.precision=fp32"]
    with tempfile.TemporaryDirectory(prefix="worldmodel-bench-stack-") as folder:
        clips, cache = Path(folder) / "clips", Path(folder) / "cache"
        clips.mkdir()
        for index in range(8 if smoke else CLIPS):
            render_clip("bounce_one", index, out=str(clips), seed=0, duration_s=2.0)
        index_sources([str(clips)], out=f"{folder}/manifest.parquet")
        connect(None)
        for name, file in CONFIGS.items():
            pairs, steps = (1, 2) if smoke else (PAIRS, STEPS[name])
            cfg = load_config(
                ROOT / "configs" / file,
                [
                    f"data.manifest={clips}",
                    f"data.cache={cache}",
                    *("train.device=cpu", "train.workers=1", f"train.threads={THREADS}"),
                    *("data.batch_clips=4", "train.micro_batches=2", "train.evaluate_clips=0"),
                    *("data.decode_actors=1", "data.held_out=0"),
                    f"train.steps={(pairs + 1) * steps + 1}",  # the last one ends the last segment
                    f"train.checkpoint_every={10**6}",
                    *slow,
                ],
            )
            plan = make_plan(f"{folder}/manifest.parquet", cfg)
            for _ in local_stream(plan, cfg, start_step=0, end_step=plan.num_train // 8):
                pass  # fills the cache
            plan.save(Path(folder) / f"plan-{name}.parquet")
            found = _job(cfg, Path(folder), name, steps=steps)
            raw[name] = found
            ratios[name] = [bare / ours for ours, bare in zip(found["job_s"], found["bare_s"], strict=True)]
            configs.append(dump_config(cfg).replace(folder, "FOLDER"))
    return Measured(
        figures={f"throughput_over_bare_{name}": median(values) for name, values in ratios.items()},
        raw={"ratios": ratios, **raw},
        n=min(map(len, ratios.values())),
        baseline={f"bare_step_s_{n}": median(raw[n]["bare_s"]) / raw[n]["steps"] for n in raw},
        config="---\n".join(configs),
    )


def _job(cfg: Any, folder: Path, name: str, *, steps: int) -> dict[str, Any]:
    from ray import cloudpickle
    from ray.train import RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig

    from ray_jobs.lean_trainer import LeanTrainer

    cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers cannot import this file
    out = folder / name
    out.mkdir()
    settings = {
        "config": cfg.model_dump_json(),
        "plan": str(folder / f"plan-{name}.parquet"),
        "out": str(out),
        "steps": steps,
    }
    LeanTrainer(
        _worker,
        train_loop_config=settings,
        torch_config=TorchConfig(backend="gloo"),
        scaling_config=ScalingConfig(num_workers=1, use_gpu=False, resources_per_worker={"CPU": 1}),
        run_config=RunConfig(name="ray", storage_path=str(out)),
    ).fit()
    if not (out / RESULT).exists():
        raise JobError(f"the job of {name} ended without a result")
    return json.loads((out / RESULT).read_text())


def _worker(settings: dict[str, Any]) -> None:
    """Segments in turn; the first pair warms up and does not count."""
    import warnings

    import torch

    from ray_jobs.dataset import local_stream, rank_stream
    from ray_jobs.plan import Plan
    from ray_jobs.train_worker import layout_of
    from worldmodel.config import RunConfig
    from worldmodel.train.engine import PlainEngine
    from worldmodel.train.loop import Hooks, train
    from worldmodel.train.no_compiler import turn_compiler_off
    from worldmodel.train.zero_engine import ZeroEngine

    warnings.filterwarnings("ignore")
    os.environ["OMP_NUM_THREADS"] = str(THREADS)
    torch.set_num_threads(THREADS)
    turn_compiler_off()
    cfg = RunConfig.model_validate_json(settings["config"])
    plan, layout = Plan.load(settings["plan"]), layout_of(cfg)
    zero = ZeroEngine(cfg, layout, micro_batches=cfg.train.micro_batches)
    plain = PlainEngine(cfg, layout)
    steps = settings["steps"]
    ready = list(local_stream(plan, cfg, start_step=0, end_step=steps))
    stream = rank_stream(plan, cfg, start_step=0, end_step=cfg.train.steps, rank=0, world_size=1)
    job_s, bare_s = list[float](), list[float]()

    def in_turn() -> Iterator[list]:
        """The job's stream. Between its segments it runs one of the bare loop, so that what a run counts
        once (its FLOPs) is counted once, in the segment that warms up."""
        began = time.perf_counter()
        for step, batches in enumerate(stream, start=1):
            yield batches
            if step % steps == 0:
                job_s.append(time.perf_counter() - began)
                began = time.perf_counter()
                _bare_loop(plain, ready, cfg, layout)
                bare_s.append(time.perf_counter() - began)
                began = time.perf_counter()

    train(zero, in_turn(), cfg, layout, start_step=0, hooks=Hooks(commit=lambda step: None))
    found = {"job_s": job_s[1:], "bare_s": bare_s[1:], "steps": steps, "threads": torch.get_num_threads()}
    (Path(settings["out"]) / RESULT).write_text(json.dumps(found))


def _bare_loop(engine: Any, ready: list, cfg: Any, layout: Any) -> None:
    """Noise, two forwards, backward, clipped AdamW on an fp32 master, EMA: the step and nothing around it."""
    from worldmodel.draw import draw
    from worldmodel.randomness import SampleRandom
    from worldmodel.self_flow import self_flow_losses

    for batches in ready:
        draws = [
            draw(b, layout, cfg.objective, SampleRandom(cfg.seed, b.epoch, tuple(b.sample_ids_B.tolist())))
            for b in batches
        ]
        counts = sum(one.counts() for one in draws)
        for one in draws:
            losses = self_flow_losses(engine.student, engine.teacher, one, cfg.objective, cfg.model.depth)
            engine.backward(losses.objective(counts, cfg.objective))
        engine.step(cfg.optim.lr)
        engine.update_ema(0.99)
