"""Student and teacher under DeepSpeed on one GPU (NCCL, world size 1) against PlainEngine: 50 losses.

    export PYTHONPATH=.:tokenizers
    python benchmarks/gpu/zero_on_gpu.py --out zero.json          # --smoke: three steps on a CPU in a minute

Prediction: relative differences below 1e-2 in bf16, with blocks gathered one by one and with all weights kept
whole, under each stage and with the optimizer in host memory. FP8 is compared with PlainEngine in FP8, and
that with bf16: below 1e-2 and 5e-2.
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from avtok.load import codec_spec
from benchmarks.makers.latents import random_batch
from worldmodel.config import RunConfig
from worldmodel.layout import Layout
from worldmodel.load_config import load_config
from worldmodel.train.engine import Engine, PlainEngine
from worldmodel.train.engines import distributed_engine
from worldmodel.train.loop import Hooks, train

ROOT = Path(__file__).parents[2]
STEPS = 50
SMALL = ["model.depth=2", "model.width=96", "data.clip_s=1.0", "train.precision=fp32"]


def main() -> None:
    """See the module's first lines."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path)
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--only", action="append", choices=VARIANTS, help="as often as needed; all")
    parser.add_argument("--smoke", action="store_true")
    parser.add_argument("--set", dest="overrides", action="append", default=[])
    given = parser.parse_args()
    on_gpu = torch.cuda.is_available()
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29511", "RANK": "0", "WORLD_SIZE": "1"}
    os.environ["LOCAL_RANK"] = "0"
    dist.init_process_group("nccl" if on_gpu else "gloo", rank=0, world_size=1)
    found: dict[str, Any] = {"device": torch.cuda.get_device_name() if on_gpu else "cpu"}
    losses: dict[str, list[float]] = {}
    small = SMALL if given.smoke else []
    steps = 3 if given.smoke else given.steps
    for variant in given.only or VARIANTS:
        extra = VARIANTS[variant]
        cfg = load_config(
            ROOT / "configs" / "debug_cpu.yaml",
            [
                *("train.device=auto", f"train.steps={steps}", "train.micro_batches=2"),
                *("train.workers=1", "optim.warmup_steps=10", *extra, *small, *given.overrides),
            ],
        )
        losses[variant] = run(cfg, plain=variant.startswith("plain"))
        print(variant, losses[variant][0], losses[variant][-1], flush=True)
    found["largest_relative_difference"] = {
        variant: max(abs(a - b) / abs(a) for a, b in zip(losses[compared_with(variant)], ours, strict=True))
        for variant, ours in losses.items()
        if compared_with(variant) in losses
    }
    found["losses"] = losses
    if given.out:
        given.out.write_text(json.dumps(found, indent=1) + "\n", "utf-8")
    print(json.dumps({**found, "losses": "..."}, indent=1))
    dist.destroy_process_group()


VARIANTS = {
    "plain": ["train.compile=never"],
    "plain_compiled": [],
    "zero_step": ["train.gather=step"],
    "zero_block": ["train.gather=block"],
    "zero_block_eager": ["train.gather=block", "train.compile=never"],
    "zero_block_recomputed": ["train.gather=block", "train.recompute=true", "train.compile=never"],
    "zero_stage_0": ["train.zero_stage=0"],
    "zero_stage_1": ["train.zero_stage=1"],
    "zero_stage_2": ["train.zero_stage=2"],
    "offloaded": ["train.offload_optimizer=true", "train.gather=block"],
    "plain_fp8": ["train.fp8=true", "train.gather=step"],
    "zero_step_fp8": ["train.fp8=true", "train.gather=step"],
    "zero_block_recomputed_fp8": ["train.fp8=true", "train.recompute=true"],
    "zero_stage_2_fp8": ["train.fp8=true", "train.zero_stage=2"],
}


def compared_with(variant: str) -> str:
    return "plain_fp8" if variant.endswith("fp8") and variant != "plain_fp8" else "plain"


def run(cfg: RunConfig, *, plain: bool) -> list[float]:
    layout = Layout.from_specs(cfg, codec_spec(cfg.codec.video), codec_spec(cfg.codec.audio))
    engine: Engine
    engine = PlainEngine(cfg, layout) if plain else distributed_engine(cfg, layout, micro_batches=2)
    rows: list[dict[str, float]] = []
    stream = ([random_batch(layout, 4, 2 * n), random_batch(layout, 4, 2 * n + 1)] for n in range(10**6))
    train(
        engine,
        stream,
        cfg,
        layout,
        start_step=0,
        hooks=Hooks(commit=lambda step: None, on_row=rows.append),
    )
    if engine.device.type == "cuda":
        torch.cuda.synchronize()
    return [row["loss"] for row in rows]


if __name__ == "__main__":
    main()
