"""One rank of ZeroEngine for test_engines: `python -m tests.worldmodel.zero_ranks RANK WORLD_SIZE FOLDER
GATHER`.

Trains and writes FOLDER/two; then loads FOLDER/one (of one process), writes it again as FOLDER/two_from_one
and goes on from there.
"""

from __future__ import annotations

import json
import sys
from contextlib import nullcontext
from pathlib import Path

import torch
import torch.distributed as dist

from tests.worldmodel.synthetic import make_batch, stream_of, tiny_config, tiny_layout
from worldmodel.batch import LatentBatch
from worldmodel.config import RunConfig
from worldmodel.train.checkpoint import CheckpointMismatch, load_checkpoint, write_checkpoint
from worldmodel.train.engine import TEACHER_PREFIX
from worldmodel.train.loop import Hooks, train
from worldmodel.train.optim import ema_decay
from worldmodel.train.zero_engine import ZeroEngine

STEPS, COMMIT_AT = 10, 8


def parity_config(precision: str = "fp32", gather: str = "block") -> RunConfig:
    train = {"steps": STEPS, "workers": 2, "precision": precision, "gather": gather, "evaluate_every": 1}
    return tiny_config(train=train)


class GatheredReference:
    """The average computed the slow way: whole student weights on every rank after each step."""

    def __init__(self, engine: ZeroEngine, *, ema_target: float) -> None:
        self.engine, self.ema_target, self.steps = engine, ema_target, 0
        self.batches, self.whole_between_steps = 0, set[bool]()
        self.average = self.gather(engine.engine.module, TEACHER_PREFIX)
        self.initial = {name: value.clone() for name, value in self.average.items()}

    @torch.no_grad()
    def gather(self, module: torch.nn.Module, prefix: str = "") -> dict[str, torch.Tensor]:
        import deepspeed  # heavy, and only real ranks need it

        named = dict(module.named_parameters())
        are_whole = all(p.ds_status.name == "AVAILABLE" for p in named.values())  # pyright: ignore
        # Leaving the context would take them apart, and the next forward would not run on what was kept.
        context = nullcontext() if are_whole else deepspeed.zero.GatheredParameters(list(named.values()))
        with context:
            whole = {n: p.detach().float().clone() for n, p in named.items() if n.startswith(prefix)}
        return {name.removeprefix(prefix): value for name, value in whole.items()}

    def follow(self, batch: LatentBatch) -> None:
        """Called for each micro-batch, after the step of all of them."""
        self.batches += 1
        if self.batches % self.engine.micro_batches:
            return
        modules = self.engine.engine.module, self.engine.teacher_engine.module
        states = {p.ds_status.name for module in modules for p in module.parameters()}  # pyright: ignore
        self.whole_between_steps.add(states == {"AVAILABLE"})
        decay = ema_decay(self.steps, self.ema_target)
        for name, student in self.gather(self.engine.engine.module, TEACHER_PREFIX).items():
            self.average[name] = decay * self.average[name] + (1 - decay) * student
        self.steps += 1

    def differences(self) -> dict[str, float]:
        teacher = self.gather(self.engine.teacher_engine.module)
        assert teacher.keys() == self.average.keys()
        return {
            "ema_max_difference": max(float((teacher[n] - a).abs().max()) for n, a in self.average.items()),
            "ema_moved": max(float((teacher[n] - a).abs().max()) for n, a in self.initial.items()),
        }


def main(rank: int, world_size: int, folder: Path, gather: str) -> None:
    cfg = parity_config(gather=gather)
    layout = tiny_layout(cfg)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=world_size
    )
    engine = ZeroEngine(cfg, layout, micro_batches=cfg.train.micro_batches // world_size)
    reference = GatheredReference(engine, ema_target=cfg.optim.ema_target)
    rows: list[dict[str, float]] = []
    calls = iter(range(STEPS + 1))

    def stop_once() -> bool:  # one rank asks, all must stop
        return next(calls) == COMMIT_AT and rank == 1

    def commit(name: str, step: int) -> None:
        (folder / name).mkdir(exist_ok=True)
        write_checkpoint(folder / name, engine, step, {})

    hooks = Hooks(
        commit=lambda step: commit("two", step),
        consumed=reference.follow,
        on_row=rows.append,
        should_stop=stop_once,
    )
    stream = stream_of(layout, rank=rank, world_size=world_size, buckets=True)
    outcome = train(engine, stream, cfg, layout, start_step=0, hooks=hooks)
    result = {"status": outcome.status, "step": outcome.step, "rows": rows, **reference.differences()}
    result["whole_between_steps"] = sorted(reference.whole_between_steps)

    # A fresh engine: whatever loading forgets to refresh still holds the initial weights. In bf16 the weights
    # that run and the master that is stored are different tensors.
    cfg = parity_config("bf16", gather)
    engine = ZeroEngine(cfg, layout, micro_batches=cfg.train.micro_batches // world_size)
    step = load_checkpoint(folder / "one", engine)
    commit("two_from_one", step)
    resumed: list[dict[str, float]] = []
    # The teacher runs whole in evaluation and to its layer in training, in turn.
    held_out = [make_batch(layout, number=100 + rank)]
    hooks = Hooks(commit=lambda step: None, on_row=resumed.append, evaluation=lambda: held_out)
    stream = stream_of(layout, rank=rank, world_size=world_size, start=step, buckets=True)
    train(engine, stream, cfg, layout, start_step=step, hooks=hooks)
    try:
        load_checkpoint(folder / "other", engine)
    except CheckpointMismatch as error:
        result["mismatch"] = str(error)
    result["resumed"] = resumed
    (folder / f"result-{rank}.json").write_text(json.dumps(result))
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]), sys.argv[4])
