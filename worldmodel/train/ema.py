"""The EMA teacher under ZeRO-3: fp32 flat shards, updated without any communication.

Gather-and-write EMAs are silent no-ops under ZeRO-3 (writes are dropped at re-partition), and bf16 EMAs
stall. Here the teacher is a second ZeRO-3 module whose shards line up with the student's; they are views of
flat buffers that are refreshed from the fp32 average after each step.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn


class ShardEma:
    """Keeps `teacher` (a ZeRO-3 engine without optimizer) the average of `student` (one with).

    Names of teacher parameters are those of student parameters without `prefix`; the student may have more.
    """

    def __init__(self, student: Any, teacher: Any, *, prefix: str) -> None:
        self.optimizer, self.teacher = student.optimizer, teacher
        ours = dict(student.module.named_parameters())
        every = {prefix + name: parameter for name, parameter in teacher.module.named_parameters()}
        for name, parameter in every.items():
            _check_alignment(name, ours[name], parameter)
        theirs = {name: parameter for name, parameter in every.items() if ours[name].requires_grad}
        # With equal master and model dtype DeepSpeed shares the tensors: clone, or the average is the student
        # itself.
        self.average = [flat.detach().float().clone() for flat in self.optimizer.fp32_partitioned_groups_flat]
        # Of the weights that run, which are elsewhere where the optimizer is offloaded.
        self.shards = [torch.empty_like(flat) for flat in self.optimizer.fp16_partitioned_groups_flat]
        teacher.optimizer.partition_all_parameters()
        for name, parameter in theirs.items():
            group, offset, length = self.optimizer.grad_position[self.optimizer.get_param_id(ours[name])]
            parameter.ds_tensor.data = self.shards[group].narrow(0, offset, length)
        for name in every.keys() - theirs.keys():  # frozen, so one shard serves both
            every[name].ds_tensor.data = ours[name].ds_tensor.data
        self.publish()

    @torch.no_grad()
    def update(self, decay: float) -> None:
        """average <- decay * average + (1 - decay) * student, on this rank's shard. Call only when a step was
        applied, and `publish` before the teacher runs."""
        student = [flat.detach() for flat in self.optimizer.fp32_partitioned_groups_flat]
        for average, flat in zip(self.average, student, strict=True):
            average.lerp_(flat, 1.0 - decay)

    @torch.no_grad()
    def publish(self) -> None:
        """Writes the average into the teacher's shards, after full copies that are still around were
        dropped."""
        self.teacher.optimizer.partition_all_parameters()
        for shard, average in zip(self.shards, self.average, strict=True):
            shard.copy_(average)


def _check_alignment(name: str, student: nn.Parameter, teacher: nn.Parameter) -> None:
    """Both modules must be cut alike, or the average would mix parameters."""
    s, t = student.ds_tensor, teacher.ds_tensor  # pyright: ignore[reportAttributeAccessIssue]
    if student.ds_shape != teacher.ds_shape or s.ds_numel != t.ds_numel:  # pyright: ignore[reportAttributeAccessIssue]
        raise ValueError(f"{name}: student shard {s.ds_numel} and teacher shard {t.ds_numel} do not line up")
