"""Bytes of weights, master, moments, gradients, average and teacher on each rank, over (16 + 6) / ranks.

Everything that ZeRO-3 and the sharded average keep between two micro-batches is counted by its storage,
padding and shared buffers included, once each, for each parameter. Prediction: gradients are kept in fp32, 4
bytes instead of the formula's 2, and the projection head has no average: 24 / 22 less a little, 1.08; padding
adds a value a parameter and rank.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from avtok.load import codec_spec
from ray_jobs.bench import Measured, run_ranks
from ray_jobs.runtime_env import ROOT
from worldmodel.layout import Layout
from worldmodel.load_config import dump_config, load_config
from worldmodel.train.loop import Hooks, train
from worldmodel.train.zero_engine import ZeroEngine

if str(ROOT) not in sys.path:
    sys.path.append(str(ROOT))

from benchmarks.makers.latents import random_batch

RANKS = (1, 2, 4)
FORMULA = 16 + 6
CONFIG = [
    "train.device=cpu",
    "data.batch_clips=1",
    "data.clip_s=0.5",
    "train.micro_batches=4",
    "train.steps=1",
]
SMOKE = ["model.depth=2", "model.width=64", "model.head_dim=32"]


def run(smoke: bool) -> Measured:
    """debug_cpu, one step on 1, 2 and 4 gloo ranks, with blocks gathered one by one."""
    found: dict[int, list[dict[str, float]]] = {}
    overrides = [*CONFIG, *(SMOKE if smoke else [])]
    with tempfile.TemporaryDirectory(prefix="worldmodel-bench-memory-") as place:
        folder = Path(place)
        for ranks in RANKS[:2] if smoke else RANKS:
            given = [str(folder), *(f"--set={one}" for one in overrides)]
            run_ranks(Path(__file__), ranks, given, log=folder / "log.txt")
            found[ranks] = [json.loads((folder / f"{ranks}-{r}.json").read_text()) for r in range(ranks)]
    ratios = {n: max(part["bytes"] * n / (FORMULA * part["parameters"]) for part in found[n]) for n in found}
    return Measured(
        figures={"measured_over_formula": max(ratios.values())},
        raw={
            "by_ranks": {str(n): parts for n, parts in found.items()},
            "ratios": {str(n): r for n, r in ratios.items()},
        },
        n=len(found),
        baseline={"formula_bytes_per_parameter": FORMULA},
        config=dump_config(load_config(ROOT / "configs" / "debug_cpu.yaml", overrides)),
        log="".join(f"{n} ranks: {ratio:.4f} of the formula\n" for n, ratio in ratios.items()),
    )


def state_tensors(engine: ZeroEngine) -> Iterator[Tensor]:
    """All that stays between micro-batches."""
    optimizer: Any = engine.optimizer
    yield from optimizer.fp16_partitioned_groups_flat
    yield from optimizer.fp32_partitioned_groups_flat
    for state in optimizer.optimizer.state.values():
        yield from (value for value in state.values() if isinstance(value, Tensor))
    yield optimizer.grad_partitions_flat_buffer
    yield from engine.average.average
    yield from engine.average.shards
    for module in (engine.engine.module, engine.teacher_engine.module):
        for parameter in module.parameters():
            yield parameter.ds_tensor  # pyright: ignore
            yield parameter.data


def total_bytes(tensors: Iterator[Tensor]) -> int:
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}
    return sum(storages.values())


def _rank() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--set", dest="overrides", action="append", default=[])
    given = parser.parse_args()
    torch.set_num_threads(1)
    rank, ranks = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    dist.init_process_group("gloo", rank=rank, world_size=ranks)
    cfg = load_config(ROOT / "configs" / "debug_cpu.yaml", [*given.overrides, "train.gather=block"])
    layout = Layout.from_specs(cfg, codec_spec(cfg.codec.video), codec_spec(cfg.codec.audio))
    per_rank = cfg.train.micro_batches // ranks
    engine = ZeroEngine(cfg, layout, micro_batches=per_rank)
    batch = random_batch(layout, cfg.data.batch_clips, 0)
    hooks = Hooks(commit=lambda step: None)
    train(engine, iter([[batch] * per_rank]), cfg, layout, start_step=0, hooks=hooks)
    parameters = sum(shard.numel for shard in engine.shards().values())
    found = {"bytes": total_bytes(state_tensors(engine)), "parameters": parameters}
    (given.folder / f"{ranks}-{rank}.json").write_text(json.dumps(found))
    dist.destroy_process_group()


if __name__ == "__main__":
    _rank()
