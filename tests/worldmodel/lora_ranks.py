"""One rank of ZeroEngine for test_lora_ranks: `python -m tests.worldmodel.lora_ranks RANK WORLD_SIZE FOLDER
GATHER,...`.

Trains a LoRA of FOLDER/base and writes FOLDER/two-GATHER; then goes on from FOLDER/one, of one process.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from tests.worldmodel.synthetic import make_batch, stream_of, tiny_config, tiny_layout
from worldmodel.config import RunConfig
from worldmodel.train.checkpoint import load_checkpoint, write_checkpoint
from worldmodel.train.engine import Engine
from worldmodel.train.loop import Hooks, train
from worldmodel.train.zero_engine import ZeroEngine

STEPS, COMMIT_AT = 4, 3


def lora_config(folder: Path, precision: str = "fp32", gather: str = "block") -> RunConfig:
    return tiny_config(
        optim={"lr": 1e-2},
        train={
            "steps": STEPS,
            "workers": 2,
            "precision": precision,
            "gather": gather,
            "evaluate_every": 1,
            "recompute": precision == "bf16",
            "init": str(folder / "base"),
            "lora": {"rank": 3},  # which two ranks share unevenly
        },
    )


def train_part(
    engine: Engine, cfg: RunConfig, folder: Path | None, *, start: int, rank: int = 0, world_size: int = 1
) -> list[dict[str, float]]:
    """From `start` to COMMIT_AT, where `folder` is given, or to the end: rows of steps and evaluations."""
    layout, rows = tiny_layout(cfg), list[dict[str, float]]()
    calls = iter(range(start, STEPS + 1))
    held_out = [make_batch(layout, number=100 + r) for r in range(rank, 2, world_size)]

    def commit(step: int) -> None:
        if folder is not None:
            folder.mkdir(exist_ok=True)
            write_checkpoint(folder, engine, step, {})

    hooks = Hooks(
        commit=commit,
        on_row=rows.append,
        should_stop=lambda: folder is not None and next(calls) == COMMIT_AT,
        evaluation=lambda: held_out,
    )
    stream = stream_of(layout, rank=rank, world_size=world_size, start=start)
    train(engine, stream, cfg, layout, start_step=start, hooks=hooks)
    return rows


def run(rank: int, world_size: int, folder: Path, gather: str) -> dict[str, Any]:
    parts = {"rank": rank, "world_size": world_size}
    cfg = lora_config(folder, gather=gather)
    engine = ZeroEngine(cfg, tiny_layout(cfg), micro_batches=cfg.train.micro_batches // world_size)
    rows = train_part(engine, cfg, folder / f"two-{gather}", start=0, **parts)
    students = dict(engine.engine.module.transformer.named_parameters())
    teachers = dict(engine.teacher_engine.module.named_parameters())
    shared = {name for name in students if place(students[name], gather) == place(teachers[name], gather)}
    frozen = {name for name, parameter in students.items() if not parameter.requires_grad}
    cfg = lora_config(folder, "bf16", gather)
    engine = ZeroEngine(cfg, tiny_layout(cfg), micro_batches=cfg.train.micro_batches // world_size)
    step = load_checkpoint(folder / "one", engine)
    resumed = train_part(engine, cfg, None, start=step, **parts)
    return {"rows": rows, "resumed": resumed, "only_base_is_shared": shared == frozen}


def place(parameter: Any, gather: str) -> int:
    """Where its values lie between steps."""
    return (parameter if gather == "step" else parameter.ds_tensor).data_ptr()


def main(rank: int, world_size: int, folder: Path, gathers: list[str]) -> None:
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=world_size
    )
    result = {gather: run(rank, world_size, folder, gather) for gather in gathers}
    (folder / f"result-{rank}.json").write_text(json.dumps(result))
    dist.destroy_process_group()


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]), sys.argv[4].split(","))
