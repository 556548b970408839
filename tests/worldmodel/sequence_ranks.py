"""One rank of a group that shares each clip's tokens, for test_sequence_parallel: `python -m
tests.worldmodel.sequence_ranks RANK WORLD_SIZE FOLDER`.

Writes what it computed of one micro-batch, its part of the gradients and rows of training to FOLDER/RANK.pt.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from tests.worldmodel.synthetic import make_batch, open_gates, stream_of, tiny_config, tiny_layout
from worldmodel.batch import LatentBatch
from worldmodel.config import RunConfig
from worldmodel.draw import draw
from worldmodel.model.sequence_parallel import SequenceGroup
from worldmodel.randomness import SampleRandom
from worldmodel.self_flow import self_flow_losses
from worldmodel.train.checkpoint import write_checkpoint
from worldmodel.train.engine import Engine, build_student
from worldmodel.train.hand_round import hand_round
from worldmodel.train.loop import Hooks, train
from worldmodel.train.zero_engine import ZeroEngine

STEPS = 4

CLIP = {"data": {"clip_s": 1.0}, "model": {"width": 64, "head_dim": 16, "window_chunks": 2, "sink_chunks": 1}}


def losses_and_gradients(ranks: SequenceGroup | None, *, recompute: bool) -> dict[str, Any]:
    """Of the Self-Flow step, with a mask of keys (a clip without sound) and modulation by actions."""
    model = CLIP["model"] | {"action_modulation": True, "window_chunks": 3}
    cfg = tiny_config(data=CLIP["data"], model=model)
    layout = tiny_layout(cfg)
    student, teacher = build_student(cfg, layout), build_student(cfg, layout).transformer
    open_gates(student)
    open_gates(teacher)
    for transformer in (student.transformer, teacher):
        transformer.sequence, transformer.recompute = ranks, recompute
    batch = make_batch(layout, clips=3)
    batch.audio.valid_BT[0] = False
    batch.actions_valid_BF[1] = False
    one = draw(batch, layout, cfg.objective, SampleRandom(0, 0, tuple(batch.sample_ids_B.tolist())))
    losses = self_flow_losses(student, teacher, one, cfg.objective, cfg.model.depth)
    loss = losses.objective(one.counts(), cfg.objective) / (1 if ranks is None else ranks.size)
    loss.backward()
    return {
        "losses": torch.stack([losses.flow, losses.align]).detach(),
        "gradients": {
            n: torch.zeros_like(p) if p.grad is None else p.grad for n, p in student.named_parameters()
        },
    }


def shared_config(ranks: int) -> RunConfig:
    train = {"steps": STEPS, "workers": ranks, "sequence_parallel": ranks}
    return tiny_config(data={"clip_s": 1.0}, train=train)


def rows_of_training(
    engine: Engine, cfg: RunConfig, stream: Iterator[list[LatentBatch]]
) -> list[dict[str, float]]:
    rows: list[dict[str, float]] = []
    consumed: list[int] = []
    hooks = Hooks(
        commit=lambda step: None,
        consumed=lambda batch: consumed.append(batch.batch_id),
        on_row=rows.append,
        evaluation=lambda: [make_batch(tiny_layout(cfg), number=100)],
    )
    train(engine, stream, cfg, tiny_layout(cfg), start_step=0, hooks=hooks)
    assert consumed == ([*range(2 * STEPS)] if engine.leads else [])
    return rows


if __name__ == "__main__":
    rank, world_size, folder = int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])
    dist.init_process_group("gloo", rank=rank, world_size=world_size, init_method=f"file://{folder}/meet")
    ranks = SequenceGroup.of(dist.group.WORLD)
    found = {r: losses_and_gradients(ranks, recompute=r) for r in (False, True)}
    cfg = shared_config(world_size)
    engine = ZeroEngine(cfg, tiny_layout(cfg), micro_batches=2)
    stream = hand_round(stream_of(tiny_layout(cfg)) if engine.leads else None, engine.ranks)
    rows = rows_of_training(engine, cfg, stream)
    write_checkpoint(folder, engine, STEPS, {})
    torch.save({**found, "rows": rows}, folder / f"{rank}.pt")
    dist.destroy_process_group()
