"""One rank of each ZeRO stage for test_zero_stages: `python -m tests.worldmodel.stage_ranks RANK WORLD_SIZE
FOLDER`.

Trains each case of `RUNS` and writes FOLDER/CASE-PRECISION; then hands FOLDER/one, of one process,
through the stages of `CHAIN`, each of which loads what the one before wrote.
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
from worldmodel.train.checkpoint import CheckpointReader, load_checkpoint, write_checkpoint
from worldmodel.train.engine import Engine
from worldmodel.train.engines import distributed_engine
from worldmodel.train.loop import Hooks, train

STEPS = 3
CASES: dict[str, dict[str, Any]] = {
    "stage-0": {"zero_stage": 0},
    "stage-1": {"zero_stage": 1},
    "stage-2": {"zero_stage": 2},
    "offloaded": {"offload_optimizer": True},
}
SHARED = {f"stage-{stage}-shared": {"zero_stage": stage, "sequence_parallel": 2} for stage in (0, 2)}
RUNS = [
    *((case, "fp32") for case in (CASES | SHARED)),
    # A replica in bf16 is PlainEngine with the same sum over ranks.
    *((case, "bf16") for case in CASES if case != "stage-0"),
]
CHAIN = ("offloaded", "stage-1", "stage-2", "stage-0", "offloaded")


def stage_config(case: str = "stage-0", precision: str = "fp32") -> RunConfig:
    """Two workers that add up two micro-batches each."""
    settings = {"steps": STEPS, "workers": 2, "micro_batches": 4, "precision": precision}
    return tiny_config(train={**settings, "evaluate_every": STEPS, **(CASES | SHARED)[case]})


def rows_of(engine: Engine, cfg: RunConfig, *, held_out: tuple[int, ...]) -> list[dict[str, float]]:
    rows: list[dict[str, float]] = []
    layout = tiny_layout(cfg)
    batches = [make_batch(layout, number=number) for number in held_out]
    hooks = Hooks(
        commit=lambda step: None,
        on_row=rows.append,
        # In bf16 slow without the units for it.
        evaluation=(lambda: batches) if cfg.train.precision == "fp32" else None,
    )
    shared = cfg.train.sequence_parallel  # ranks that train on the same clips
    ours = {"rank": engine.rank // shared, "world_size": engine.world_size // shared}
    stream = stream_of(layout, micro_batches=cfg.train.micro_batches, **ours)
    train(engine, stream, cfg, layout, start_step=0, hooks=hooks)
    return rows


def values_held(engine: Engine) -> dict[str, int]:
    """Values of each kind that this rank has in fp32."""
    found: dict[str, int] = {}
    for shard in engine.shards().values():
        for kind, part in shard.parts.items():
            found[kind] = found.get(kind, 0) + part.numel()
    return found


def teacher_is_off_by(engine: Engine, folder: Path) -> float:
    """From the average that was stored, at most; whole teachers only."""
    teacher = getattr(engine, "whole_teacher", engine.teacher)
    stored = CheckpointReader(folder).ema_weights()
    return max(float((p.float() - stored[n]).abs().max()) for n, p in teacher.named_parameters())


def main(rank: int, world_size: int, folder: Path) -> None:
    meet = f"file://{folder}/rendezvous"
    dist.init_process_group("gloo", init_method=meet, rank=rank, world_size=world_size)
    result: dict[str, Any] = {}
    engines: dict[str, Engine] = {}

    def write(name: str, engine: Engine) -> None:
        (folder / name).mkdir(exist_ok=True)
        write_checkpoint(folder / name, engine, STEPS, {})
        dist.barrier()  # it is read next

    for case, precision in RUNS:
        cfg = stage_config(case, precision)
        per_rank = cfg.train.micro_batches * cfg.train.sequence_parallel // world_size
        engine = distributed_engine(cfg, tiny_layout(cfg), micro_batches=per_rank)
        rows = rows_of(engine, cfg, held_out=(100, 101) if case in SHARED else (100 + rank,))
        name = f"{case}-{precision}"
        write(name, engine)
        result[name] = {"rows": rows, "held": values_held(engine)}
        if cfg.train.zero_stage < 3:
            result[name]["teacher_off"] = teacher_is_off_by(engine, folder / name)
        if precision == "fp32":
            engines[case] = engine
    before = "one"
    for number, case in enumerate(CHAIN):
        load_checkpoint(folder / before, engines[case])
        before = f"chain-{number}"
        write(before, engines[case])
    (folder / f"result-{rank}.json").write_text(json.dumps(result))
    dist.destroy_process_group()


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
