"""A checkpoint handed on between numbers of ZeRO-3 ranks: whether the bytes come back the same.

Run as a script it is one rank: a fresh engine, a few steps or a checkpoint to read, a checkpoint to write.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

STEPS = 3
SETTINGS = [
    *("model.depth=2", "model.width=64", "model.head_dim=32", "data.clip_s=1.0", "data.batch_clips=2"),
    *("train.device=cpu", f"train.steps={STEPS}", "train.micro_batches=6", "train.precision=fp32"),
]


def reslice(folder: Path, chain: Sequence[int]) -> dict[str, Any]:
    """chain: ranks of each that reads what the one before wrote; the first and last as many."""
    from ray_jobs.bench import run_ranks

    places = [folder / f"{number}-of-{ranks}-ranks" for number, ranks in enumerate(chain)]
    for place in places:
        place.mkdir(parents=True)
    source = ""
    for ranks, target in zip(chain, places, strict=True):
        run_ranks(Path(__file__), ranks, [source, str(target)], log=folder / "log.txt")
        source = str(target)
    files = [{file.name: file.read_bytes() for file in place.iterdir()} for place in places]
    return {
        "identical": files[0] == files[-1],
        "differ_on_the_way": all(a.keys() != b.keys() for a, b in pairwise(files)),
        "files": [sorted(found) for found in files],
        "bytes": sum(len(content) for content in files[0].values()),
    }


def _rank(source: str, target: Path) -> None:
    import torch
    import torch.distributed as dist

    from avtok.load import codec_spec
    from benchmarks.makers.latents import random_batch
    from worldmodel.layout import Layout
    from worldmodel.load_config import load_config
    from worldmodel.train.checkpoint import load_checkpoint, write_checkpoint
    from worldmodel.train.loop import Hooks, train
    from worldmodel.train.zero_engine import ZeroEngine

    torch.set_num_threads(1)
    rank, world_size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    dist.init_process_group("gloo", rank=rank, world_size=world_size)
    cfg = load_config(ROOT / "configs" / "debug_cpu.yaml", SETTINGS)
    layout = Layout.from_specs(cfg, codec_spec(cfg.codec.video), codec_spec(cfg.codec.audio))
    per_rank = cfg.train.micro_batches // world_size
    engine = ZeroEngine(cfg, layout, micro_batches=per_rank)
    if source:
        step = load_checkpoint(Path(source), engine)
    else:
        step = cfg.train.steps
        numbers = ([s * per_rank + i for i in range(per_rank)] for s in range(step))
        stream = ([random_batch(layout, cfg.data.batch_clips, n) for n in some] for some in numbers)
        train(engine, stream, cfg, layout, start_step=0, hooks=Hooks(commit=lambda step: None))
    write_checkpoint(target, engine, step, {"seed": cfg.seed})
    dist.destroy_process_group()


ROOT = Path(__file__).parents[2]
if __name__ == "__main__":
    sys.path.append(str(ROOT))
    _rank(sys.argv[1], Path(sys.argv[2]))
