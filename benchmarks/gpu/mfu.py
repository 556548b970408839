"""Model FLOPs utilisation on one GPU, with and without teacher, and the same model in a bare compiled loop.

    export PYTHONPATH=.:tokenizers
    python benchmarks/gpu/mfu.py --out mfu.json          # --smoke: the same path on a CPU in a minute

Imports only worldmodel and avtok. Both loops train the same weights, in turn: ours is
`worldmodel.train.loop` on PlainEngine with batches that come from the host; the bare one has its noise drawn
beforehand and is nothing but forwards, backward, clipped AdamW on an fp32 master and the average. MFU counts
what the step needs (visible pairs, no recomputation) over the rate of an 8192 x 8192 x 8192 bf16 product held
for two seconds.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from collections.abc import Callable
from itertools import count, repeat
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor

from avtok.load import codec_spec
from benchmarks.makers.latents import random_batch
from worldmodel.config import RunConfig
from worldmodel.draw import Draw, draw
from worldmodel.flops import step_flops
from worldmodel.layout import Layout
from worldmodel.load_config import dump_config, load_config
from worldmodel.randomness import SampleRandom
from worldmodel.self_flow import self_flow_losses
from worldmodel.train.engine import PlainEngine
from worldmodel.train.loop import Hooks, train

ROOT = Path(__file__).parents[2]
# Clips of 256 x 256 pixels and 5 s in a micro-batch, and micro-batches of a worker's step, as in the presets.
CLIPS = {"av_300m": 16, "av_1b": 4}
MICRO_BATCHES = {"av_300m": 1, "av_1b": 4}
FIVE_SECONDS = ["data.clip_s=5.0", "data.size=[256,256]", "model.window_chunks=19"]
SMALL = ["model.depth=2", "model.width=64", "model.head_dim=32", "data.clip_s=1.0", "data.size=[32,32]"]
PAIRS, STEPS = 5, 3


def main() -> None:
    """See the module's first lines."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", action="append", choices=CLIPS, help="as often as needed; both")
    parser.add_argument("--clips", type=int, help="of a micro-batch")
    parser.add_argument("--pairs", type=int, default=PAIRS)
    parser.add_argument("--steps", type=int, default=STEPS, help="of one segment")
    parser.add_argument("--set", dest="overrides", action="append", default=[])
    parser.add_argument("--out", type=Path)
    parser.add_argument("--profile", action="store_true", help="kernels of one step with the teacher")
    parser.add_argument("--smoke", action="store_true")
    given = parser.parse_args()
    found = measure(
        given.model or list(CLIPS),
        clips=given.clips,
        pairs=1 if given.smoke else given.pairs,
        steps=1 if given.smoke else given.steps,
        overrides=[*(SMALL if given.smoke else FIVE_SECONDS), *given.overrides],
        profile=given.profile,
    )
    if given.out:
        given.out.write_text(json.dumps(found, indent=1) + "\n", "utf-8")
    print(json.dumps({**found, "raw": "..."}, indent=1))


def measure(
    models: list[str], *, clips: int | None, pairs: int, steps: int, overrides: list[str], profile: bool
) -> dict[str, Any]:
    """{matrix_tflops, figures by model, raw}."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.set_num_threads(2 if device.type == "cpu" else 8)
    rate = matrix_rate(device)
    print(f"matrix rate {rate / 1e12:.1f} TFLOP/s", flush=True)
    figures, raw = {}, {}
    for name in models:
        given = ["train.device=auto", f"train.micro_batches={MICRO_BATCHES[name]}", *overrides]
        cfg = load_config(ROOT / "configs" / f"{name}.yaml", given)
        raw[name] = measure_model(
            cfg, clips or CLIPS[name], device, pairs=pairs, steps=steps, profile=profile
        )
        figures[name] = figures_of(raw[name], rate)
        print(json.dumps({name: figures[name]}), flush=True)
        if device.type == "cuda":
            torch.cuda.empty_cache()
    machine = torch.cuda.get_device_name() if device.type == "cuda" else platform.processor()
    versions = {"python": platform.python_version(), "torch": torch.__version__}
    return {
        "figures": figures,
        "matrix_tflops": rate / 1e12,
        "device": machine,
        "versions": versions,
        "raw": raw,
    }


def figures_of(raw: dict[str, Any], rate: float) -> dict[str, float]:
    """MFU of both kinds of step; over the bare loop: the median over pairs, the smaller of the two kinds."""
    found: dict[str, float] = {}
    over_bare = []
    for kind in ("with_teacher", "student_only"):
        part = raw[kind]
        seconds = median(part["ours_s"]) / part["steps"]
        found[f"mfu_{kind}"] = part["flops_per_step"] / seconds / rate
        over_bare.append(median(b / o for b, o in zip(part["bare_s"], part["ours_s"], strict=True)))
        found[f"step_s_{kind}"] = seconds
        found[f"over_bare_{kind}"] = over_bare[-1]
    return {**found, "over_bare": min(over_bare), "peak_gb": raw["peak_bytes"] / 2**30}


def matrix_rate(device: torch.device, size: int = 8192, seconds: float = 2.0) -> float:
    """FLOP/s of a bf16 product of two square matrices of random numbers, held for `seconds`."""
    if device.type == "cpu":
        size, seconds = 256, 0.2
    a, b = (torch.randn(size, size, device=device, dtype=torch.bfloat16) for _ in range(2))
    for _ in range(3):
        a @ b
    wait(device)
    began, products = time.perf_counter(), 0
    while time.perf_counter() - began < seconds:
        for _ in range(20):
            a @ b
        wait(device)
        products += 20
    return 2 * size**3 * products / (time.perf_counter() - began)


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def measure_model(
    cfg: RunConfig, clips: int, device: torch.device, *, pairs: int, steps: int, profile: bool
) -> dict[str, Any]:
    layout = Layout.from_specs(cfg, codec_spec(cfg.codec.video), codec_spec(cfg.codec.audio))
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    engine = PlainEngine(cfg, layout, device=device)
    found: dict[str, Any] = {
        "parameters": sum(p.numel() for p in engine.student.parameters()),
        "tokens": layout.length,
        "clips": clips,
        "config": dump_config(cfg),
    }
    for kind, rep in (("with_teacher", "ema"), ("student_only", "none")):
        own = cfg.model_copy(update={"objective": cfg.objective.model_copy(update={"rep": rep})})
        ours, bare = loops(engine, own, layout, clips)
        began = time.perf_counter()
        bare(1)
        ours(1)  # what is compiled is compiled now
        wait(device)
        found[f"{kind}_first_s"] = time.perf_counter() - began
        print(f"{kind}: compiled in {found[f'{kind}_first_s']:.0f} s", flush=True)
        if profile and rep == "ema" and device.type == "cuda":
            print(kernels_of(ours), flush=True)
        part: dict[str, Any] = {"ours_s": [], "bare_s": [], "steps": steps}
        for _ in range(pairs):
            for name, loop in (("ours_s", ours), ("bare_s", bare)):
                began = time.perf_counter()
                loop(steps)
                wait(device)
                part[name].append(time.perf_counter() - began)
        part["flops_per_step"] = step_flops(own, layout, clips).total * cfg.train.micro_batches
        found[kind] = part
        print(json.dumps({kind: part}), flush=True)
    found["peak_bytes"] = torch.cuda.max_memory_allocated() if device.type == "cuda" else 0
    return found


def loops(
    engine: PlainEngine, cfg: RunConfig, layout: Layout, clips: int
) -> tuple[Callable[[int], None], Callable[[int], None]]:
    """Our loop and the bare one, each for a number of steps, over the same weights."""
    batches = [random_batch(layout, clips, number) for number in range(cfg.train.micro_batches)]
    done = count()
    stream = repeat(batches)

    def ours(steps: int) -> None:
        first = next(done) * 1000
        last = cfg.train.model_copy(update={"steps": first + steps, "checkpoint_every": 10**9})
        hooks = Hooks(commit=lambda step: None)
        train(engine, stream, cfg.model_copy(update={"train": last}), layout, start_step=first, hooks=hooks)

    draws = [
        draw(b.to(engine.device), layout, cfg.objective, SampleRandom(0, 0, tuple(b.sample_ids_B.tolist())))
        for b in batches
    ]
    counts = torch.stack([one.counts() for one in draws]).sum(0)

    def bare(steps: int) -> None:
        for _ in range(steps):
            bare_step(engine, cfg, draws, counts)

    return ours, bare


def bare_step(engine: PlainEngine, cfg: RunConfig, draws: list[Draw], counts: Tensor) -> None:
    """Two forwards and backward of each micro-batch, AdamW, average: the step and nothing around it."""
    for one in draws:
        losses = self_flow_losses(engine.student, engine.teacher, one, cfg.objective, cfg.model.depth)
        losses.objective(counts, cfg.objective).backward()
    with torch.no_grad():
        for name, parameter in engine.student.named_parameters():
            if parameter.grad is not None:
                engine.gradient[name].copy_(parameter.grad)
            parameter.grad = None
            engine.master[name].grad = engine.gradient[name]
        masters = list(engine.master.values())
        torch.nn.utils.clip_grad_norm_(masters, cfg.optim.clip_norm)
        engine.optimizer.step()
        torch._foreach_copy_(list(engine.student.parameters()), masters)
        averages = list(engine.ema.values())
        torch._foreach_lerp_(averages, [engine.master[name].detach() for name in engine.ema], 0.001)
        torch._foreach_copy_(list(engine.teacher.parameters()), averages)


def kernels_of(loop: Callable[[int], None]) -> str:
    """Where the time of two steps goes."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CUDA, ProfilerActivity.CPU]) as profiled:
        loop(2)
        torch.cuda.synchronize()
    averages = profiled.key_averages()
    return averages.table(sort_by="self_cuda_time_total", row_limit=45, max_name_column_width=70)


if __name__ == "__main__":
    main()
