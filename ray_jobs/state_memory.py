"""Bytes of weights, optimizer, gradients and average on one worker, as the engine of train.zero_stage lays
them out; kinds as in worker_memory.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import nn

from worldmodel.config import RunConfig
from worldmodel.model.student import SelfFlowStudent

# W ranks.

FP32, FP64 = 4, 8
BUCKET = 5_000_000  # gradients that DeepSpeed collects before it reduces them: reduce_bucket_size
REUSED_WITHIN = 10**9  # parameters: what DeepSpeed needs again so soon it keeps (stage3_max_reuse_distance)


@dataclass(frozen=True)
class Counts:
    """Parameters: of the whole student, of what is trained (all but for a LoRA), of what of that is averaged,
    and of one rank's shards."""

    whole: int
    trained: int
    averaged: int
    shard: int  # of what is trained
    frozen_shard: int
    largest_block: int
    largest_parameter: int
    value_bytes: int  # of a weight or an activation
    workers: int

    @classmethod
    def of(cls, student: SelfFlowStudent, workers: int) -> Counts:
        parameters = list(student.parameters())
        trained = [p.numel() for p in parameters if p.requires_grad]
        frozen = [p.numel() for p in parameters if not p.requires_grad]
        averaged = [p.numel() for p in student.transformer.parameters() if p.requires_grad]
        return cls(
            whole=sum(trained) + sum(frozen),
            trained=sum(trained),
            averaged=sum(averaged),
            # The last rank's share is padded to the length of the others.
            shard=sum(math.ceil(numel / workers) for numel in trained),
            frozen_shard=sum(math.ceil(numel / workers) for numel in frozen),
            largest_block=max(_numel(block) for block in student.transformer.blocks),
            largest_parameter=max(math.ceil(numel / workers) for numel in trained),
            value_bytes=parameters[0].element_size(),
            workers=workers,
        )

    @property
    def frozen(self) -> int:
        return self.whole - self.trained

    @property
    def partition(self) -> int:
        """Of all that is trained, in one piece, as ZeRO-1 and 2 cut it."""
        return math.ceil(self.trained / self.workers)


def state_bytes(cfg: RunConfig, count: Counts, micro_batches: int) -> dict[str, int]:
    """What stays from step to step, what a step gathers of it, and what its update takes. micro_batches: of
    this worker."""
    if cfg.train.zero_stage == 0:
        return _replicated(count)
    if cfg.train.zero_stage < 3:
        # In bf16 ZeRO-1 has sums in fp32 of its own; else they are the gradients of the micro-batches.
        stay = cfg.train.zero_stage == 1 and (count.value_bytes < FP32 or micro_batches > 1)
        return _partitioned(count, stage=cfg.train.zero_stage, sums_stay_whole=stay)
    state = _sharded(count) | (_by_step if cfg.train.gather == "step" else _by_block)(count)
    if cfg.train.offload_optimizer:
        state["optimizer"] += count.shard * FP32  # gradients are there too, and where they come from
    return state


def stored_bytes(count: Counts) -> int:
    """Of the state that this worker writes into a checkpoint."""
    return math.ceil((count.trained * 3 + count.averaged) / count.workers) * FP32


def _replicated(count: Counts) -> dict[str, int]:
    """Everything on every rank, the teacher's frozen weights too."""
    return {
        "weights": count.whole * count.value_bytes,
        "optimizer": count.trained * 3 * FP32,
        "gradients": count.trained * FP32,
        "teacher": (count.averaged + count.frozen) * count.value_bytes + count.averaged * FP32,
        "micro_gradients": count.trained * count.value_bytes,
        "update": count.largest_parameter * FP64,
    }


def _partitioned(count: Counts, *, stage: int, sums_stay_whole: bool) -> dict[str, int]:
    """Weights of student and teacher whole, one rank's part of what is stepped. Gradients come one bucket
    after the other."""
    summed = count.trained if sums_stay_whole else count.partition
    return {
        "weights": count.whole * count.value_bytes,
        "optimizer": count.partition * 3 * FP32,
        "gradients": summed * FP32,
        "teacher": count.averaged * count.value_bytes + count.partition * FP32,
        "micro_gradients": min(count.trained, BUCKET) * FP32
        + (count.trained if stage == 1 else 0) * count.value_bytes,
        "buffers": count.partition * count.value_bytes if count.workers > 1 else 0,
        "update": count.partition * FP32,
    }


def _sharded(count: Counts) -> dict[str, int]:
    """The same, by parameters. Student and teacher share what is frozen."""
    return {
        "weights": (count.shard + count.frozen_shard) * count.value_bytes,
        "optimizer": count.shard * 3 * FP32,
        "gradients": count.shard * FP32,
        "teacher": count.shard * (FP32 + count.value_bytes),  # laid out like the student, heads and all
    }


def _by_step(count: Counts) -> dict[str, int]:
    """Whole weights and sums of gradients from start to end, sent and received by buffers of a shard each."""
    width, is_alone = count.value_bytes, count.workers == 1
    sums = count.shard * count.workers * FP32
    return {
        "whole": sums + count.frozen * width + (0 if is_alone else (count.trained + count.averaged) * width),
        "buffers": 0 if is_alone else count.shard * (2 * width + FP32),
        "update": count.largest_parameter * FP64,  # for its norm
    }


def _by_block(count: Counts) -> dict[str, int]:
    """What forward gathered and backward needs again soon stays whole: all but very large models."""
    soon = 0 if count.workers == 1 else min(count.whole, REUSED_WITHIN // 2)
    return {
        "buffers": min(count.trained, BUCKET) * FP32,
        "gathered": (soon + count.largest_block) * count.value_bytes,
        "update": count.shard * FP32,  # gradients in one piece
    }


def _numel(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
