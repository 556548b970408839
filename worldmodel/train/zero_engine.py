"""DeepSpeed ZeRO-3, on any number of ranks. There a shard is [rank * part, (rank + 1) * part) of a flattened
parameter, part = ceil(n / ranks)."""

from __future__ import annotations

import contextlib
import io
import math
from dataclasses import replace
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from worldmodel.config import RunConfig
from worldmodel.layout import Layout
from worldmodel.model.block import Block
from worldmodel.model.sequence_parallel import share_sequences
from worldmodel.model.student import SelfFlowStudent
from worldmodel.model.transformer import WorldTransformer
from worldmodel.train.deepspeed_setup import deepspeed_settings, import_deepspeed
from worldmodel.train.ema import ShardEma
from worldmodel.train.engine import (
    TEACHER_PREFIX,
    ParameterShard,
    adam_state,
    build_student,
    pick_device,
    prepare_blocks,
    slice_of_rank,
    trained,
)
from worldmodel.train.gradient_norms import squares_by_part
from worldmodel.train.optim import build_optimizer
from worldmodel.train.whole import Fixed, Place, WholeStep


class ZeroEngine:
    """DeepSpeed ZeRO-3 for student and teacher. The process group must exist (TorchTrainer makes it)."""

    is_replicated = False

    def __init__(
        self, cfg: RunConfig, layout: Layout, *, micro_batches: int, device: torch.device | None = None
    ) -> None:
        """micro_batches: how many this rank runs a step. ValueError if the process group is missing."""
        if not dist.is_initialized():
            raise ValueError(
                "ZeroEngine needs torch.distributed to be initialised first; use PlainEngine for one process"
            )
        self.rank, self.world_size = dist.get_rank(), dist.get_world_size()
        self.device = pick_device(cfg.train.device) if device is None else device
        deepspeed = import_deepspeed(self.device)
        self.ranks = share_sequences(cfg.train.sequence_parallel)
        self.leads = self.ranks is None or self.ranks.rank == 0
        dtype = torch.bfloat16 if cfg.train.precision == "bf16" else torch.float32

        def placed(module: torch.nn.Module, transformer: WorldTransformer) -> None:
            module.to(self.device, dtype)  # as DeepSpeed would, but not in fp32 on the device before
            prepare_blocks(transformer, cfg, self.device)
            transformer.sequence = self.ranks
            # A block is gathered whole, by one collective: linear layer by linear layer, a small model spends
            # a third of each step waiting.
            deepspeed.utils.set_z3_leaf_modules(module, [Block])

        # One after the other: the student is in shards before the teacher is built whole.
        with contextlib.redirect_stdout(io.StringIO()):  # DeepSpeed prints its whole configuration
            student = build_student(cfg, layout)
            placed(student, student.transformer)
            is_compiled = student.transformer.is_compiled
            self.engine, self.optimizer, _, _ = deepspeed.initialize(
                model=student,
                optimizer=build_optimizer(student.parameters(), cfg.optim),
                config=self._settings(cfg, micro_batches, is_compiled=is_compiled),
                dist_init_required=False,
            )
            teacher = build_student(cfg, layout).transformer.requires_grad_(False).eval()
            placed(teacher, teacher)
            self.teacher_engine, *_ = deepspeed.initialize(
                model=teacher,
                config=deepspeed_settings(cfg, 1, is_compiled=is_compiled),
                dist_init_required=False,
            )
        self.average = ShardEma(self.engine, self.teacher_engine, prefix=TEACHER_PREFIX)
        self.micro_batches, self.has_teacher = micro_batches, cfg.objective.has_teacher
        self.whole = self._keep_whole() if cfg.train.gather == "step" else None
        self.student: torch.nn.Module = self.engine if self.whole is None else self.engine.module
        self._start_from_fp32(build_student(cfg, layout))

    def _settings(self, cfg: RunConfig, micro_batches: int, *, is_compiled: bool) -> dict[str, Any]:
        settings = deepspeed_settings(cfg, micro_batches, is_compiled=is_compiled)
        if cfg.train.offload_optimizer:
            on_gpu = self.device.type == "cuda"
            settings["zero_optimization"]["offload_optimizer"] = {"device": "cpu", "pin_memory": on_gpu}
        return settings

    def _keep_whole(self) -> WholeStep:
        """For models that fit: takes over DeepSpeed's gathers and reductions, leaves it the shards."""
        students = {}
        for name, parameter in trained(self.engine.module).items():
            group, offset, length = self.optimizer.grad_position[self.optimizer.get_param_id(parameter)]
            students[name] = Place(parameter, group, offset, length)
        averaged = {TEACHER_PREFIX + name: p for name, p in self.teacher_engine.module.named_parameters()}
        # Their shards line up with the student's.
        teachers = [replace(students[name], parameter=p) for name, p in averaged.items() if name in students]
        frozen = [
            (p, averaged[name]) for name, p in self.engine.module.named_parameters() if name not in students
        ]
        # What these hooks gather and release stays whole; they also trip over the teacher's two lengths.
        self.teacher_engine.optimizer._remove_module_hooks()
        return WholeStep(
            self.optimizer,
            list(students.values()),
            teachers,
            self.average.shards,
            fixed=Fixed.gathered(frozen),
        )

    @torch.no_grad()
    def _start_from_fp32(self, initial: SelfFlowStudent) -> None:
        """Gives the master and its average the weights as they were drawn.

        DeepSpeed makes its fp32 master from weights that it rounded to bf16 first. On that grid the first
        small steps of a warm-up move hardly any bf16 weight, and the losses of the two engines part.
        """
        whole = {name: parameter.detach().flatten() for name, parameter in initial.named_parameters()}
        for name, shard in self.shards().items():
            for kind in {"weight", "ema"} & shard.parts.keys():
                part = shard.parts[kind]
                part.copy_(whole[name][shard.start : shard.start + part.numel()])
        self.loaded(0)

    def teacher(self, *args: Any, **kwargs: Any) -> dict:
        run = self.teacher_engine if self.whole is None else self.teacher_engine.module
        return run(*args, **kwargs)

    def backward(self, loss: Tensor) -> None:
        """One micro-batch; the last one of a step is followed by `step`."""
        if self.ranks is not None:  # all of them compute the whole loss
            loss = loss / self.ranks.size
        if self.whole is not None:
            loss.backward()
            return
        self.engine.backward(loss * self.world_size, scale_wrt_gas=False)  # gradients are averaged over ranks
        if not self.engine.is_gradient_accumulation_boundary():
            self.engine.step()

    def step(self, learning_rate: float) -> float:
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        if self.whole is not None:
            return self.whole.step(self._measure_gradients)
        self._measure_gradients()
        self.engine.step()
        return float(self.engine.get_global_grad_norm() or 0.0)

    def _measure_gradients(self) -> None:
        """When all ranks' are added, and before they are clipped: of this rank's slices, without padding."""
        ours, optimizer, named = trained(self.engine.module), self.optimizer, list[tuple[str, Tensor]]()
        place_of = {id(p): (name, math.prod(p.ds_shape)) for name, p in ours.items()}
        for number, group in enumerate(optimizer.fp16_groups):
            offset, masters = 0, optimizer.fp32_partitioned_groups_flat
            for index, parameter in enumerate(group):
                name, numel = place_of[id(parameter)]
                start, end = slice_of_rank(numel, self.rank, self.world_size)
                if optimizer.offload_optimizer:  # they are with the master weights
                    gradient = masters[number].grad.narrow(0, offset, end - start)
                    offset += parameter.ds_tensor.ds_numel
                else:
                    gradient = optimizer.averaged_gradients[number][index][: end - start]
                named.append((name, gradient))
        self.gradient_squares = squares_by_part(named)

    def update_ema(self, decay: float) -> None:
        self.average.update(decay)
        if self.has_teacher:  # without one, the averaged weights run in evaluations only
            self.publish_average()

    def publish_average(self) -> None:
        """Puts the average into the weights that run as `teacher`. On all ranks at once."""
        self.average.publish()
        if self.whole is not None:
            self.whole.teacher.refresh()

    def all_reduce(self, vector: Tensor) -> Tensor:
        dist.all_reduce(vector)
        return vector

    def shards(self) -> dict[str, ParameterShard]:
        found = {}
        for name, parameter in trained(self.engine.module).items():
            group, offset, _ = self.optimizer.grad_position[self.optimizer.get_param_id(parameter)]
            shape = tuple(parameter.ds_shape)
            start, end = slice_of_rank(math.prod(shape), self.rank, self.world_size)
            master = self.optimizer.fp32_partitioned_groups_flat[group]
            state = adam_state(self.optimizer.optimizer, master)
            flats = {"weight": master, "exp_avg": state["exp_avg"], "exp_avg_sq": state["exp_avg_sq"]}
            if name.startswith(TEACHER_PREFIX):
                flats["ema"] = self.average.average[group]
            # The padding of the last ranks is uninitialised memory: it is cut off here.
            parts = {kind: flat.detach().narrow(0, offset, end - start) for kind, flat in flats.items()}
            found[name] = ParameterShard(shape, start, parts)
        return found

    def loaded(self, step: int) -> None:
        optimizer = self.optimizer
        for group, master in enumerate(optimizer.fp32_partitioned_groups_flat):
            optimizer.optimizer.state[master]["step"].fill_(step)
            if optimizer.fp16_partitioned_groups_flat[group] is not master:
                optimizer.fp16_partitioned_groups_flat[group].data.copy_(master.data)
            optimizer._unflatten_partitioned_parameters(group)
        self.average.publish()
        if self.whole is not None:
            self.whole.refresh()
