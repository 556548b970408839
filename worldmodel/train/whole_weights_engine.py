"""Engines whose ranks hold all weights: DeepSpeed ZeRO-1 and 2, and plain replicas for stage 0.

DeepSpeed itself refuses fp32 sums of the gradients of bf16 weights without ZeRO (NotImplementedError), so a
replica is PlainEngine, whose fp32 gradients are added up over ranks once a step.
"""

from __future__ import annotations

import contextlib
import io
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from worldmodel.config import RunConfig
from worldmodel.layout import Layout
from worldmodel.model.sequence_parallel import share_sequences
from worldmodel.train.deepspeed_setup import deepspeed_settings, import_deepspeed
from worldmodel.train.engine import (
    TEACHER_PREFIX,
    ParameterShard,
    PlainEngine,
    adam_state,
    build_student,
    pick_device,
    prepare_blocks,
)
from worldmodel.train.flat_groups import GatheredEma, flat_groups, spans
from worldmodel.train.gradient_norms import squares_by_part
from worldmodel.train.optim import build_optimizer
from worldmodel.train.zero_engine import ZeroEngine


class WholeWeightsEngine(ZeroEngine):
    """ZeRO-1 or 2, as train.zero_stage says. Clipping, learning rate and loss go as in ZeRO-3."""

    def __init__(
        self, cfg: RunConfig, layout: Layout, *, micro_batches: int, device: torch.device | None = None
    ) -> None:
        """micro_batches: how many this rank runs a step."""
        self.rank, self.world_size = dist.get_rank(), dist.get_world_size()
        self.device = pick_device(cfg.train.device) if device is None else device
        deepspeed = import_deepspeed(self.device)
        student = build_student(cfg, layout).to(self.device)
        dtype = torch.bfloat16 if cfg.train.precision == "bf16" else torch.float32
        teacher = build_student(cfg, layout).transformer.to(self.device, dtype).requires_grad_(False).eval()
        self.ranks = share_sequences(cfg.train.sequence_parallel)
        self.leads = self.ranks is None or self.ranks.rank == 0
        for transformer in (student.transformer, teacher):
            prepare_blocks(transformer, cfg, self.device)
            transformer.sequence = self.ranks
        optimizer = build_optimizer(student.parameters(), cfg.optim)
        settings = deepspeed_settings(cfg, micro_batches, is_compiled=teacher.is_compiled)
        with contextlib.redirect_stdout(io.StringIO()):  # DeepSpeed prints its whole configuration
            self.engine, self.optimizer, _, _ = deepspeed.initialize(
                model=student, optimizer=optimizer, config=settings, dist_init_required=False
            )
        self.groups = flat_groups(self.optimizer)
        self.places = spans(self.engine.module.named_parameters(), self.groups)
        self.average = GatheredEma(self.groups, self.places, teacher, prefix=TEACHER_PREFIX)
        self.micro_batches, self.has_teacher = micro_batches, cfg.objective.has_teacher
        self.student, self.whole_teacher, self.whole = self.engine, teacher, None
        self._start_from_fp32(build_student(cfg, layout))

    def teacher(self, *args: Any, **kwargs: Any) -> dict:
        return self.whole_teacher(*args, **kwargs)

    def _measure_gradients(self) -> None:
        """Not by modality: a partition of DeepSpeed's does not say whose gradients it holds."""
        self.gradient_squares = squares_by_part([])

    def shards(self) -> dict[str, ParameterShard]:
        found = {}
        for name, parameter in self.engine.module.named_parameters():
            span = self.places[name]
            master = self.groups[span.group].master_P
            state = adam_state(self.optimizer.optimizer, master)
            flats = {"weight": master, "exp_avg": state["exp_avg"], "exp_avg_sq": state["exp_avg_sq"]}
            if name.startswith(TEACHER_PREFIX):
                flats["ema"] = self.average.average[span.group]
            start, offset, length = span.within(self.rank, master.numel())
            parts = {kind: flat.detach().narrow(0, offset, length) for kind, flat in flats.items()}
            found[name] = ParameterShard(tuple(parameter.shape), start, parts)
        return found

    def loaded(self, step: int) -> None:
        for group in self.groups:
            self.optimizer.optimizer.state[group.master_P]["step"].fill_(step)
        self.optimizer.update_lp_params()
        self.average.publish()


class ReplicatedEngine(PlainEngine):
    """Stage 0: each rank holds and steps everything."""

    is_replicated = True

    def __init__(self, cfg: RunConfig, layout: Layout, *, device: torch.device | None = None) -> None:
        super().__init__(cfg, layout, device=device)
        self.rank, self.world_size = dist.get_rank(), dist.get_world_size()
        self.ranks = share_sequences(cfg.train.sequence_parallel)
        self.leads = self.ranks is None or self.ranks.rank == 0
        for transformer in (self.student.transformer, self.teacher):
            transformer.sequence = self.ranks
        # In one piece, for one collective.
        sizes = [gradient.numel() for gradient in self.gradient.values()]
        self.gradients = torch.zeros(sum(sizes), device=self.device)
        pieces = zip(self.gradient.items(), self.gradients.split(sizes), strict=True)
        self.gradient = {name: piece.view(gradient.shape) for (name, gradient), piece in pieces}

    def backward(self, loss: Tensor) -> None:
        super().backward(loss if self.ranks is None else loss / self.ranks.size)

    def step(self, learning_rate: float) -> Tensor:
        dist.all_reduce(self.gradients)
        norm = super().step(learning_rate)
        self.gradient_squares /= self.world_size  # each has them whole, and they are added up over ranks
        return norm

    def all_reduce(self, vector: Tensor) -> Tensor:
        dist.all_reduce(vector)
        return vector
