"""Bytes of one training worker and when it needs most, as `worldmodel.train.engine` sets ZeRO-3 up.

Each kind is a number of its own. The peak is the worst of four moments (an evaluation keeps nothing);
`worldmodel bench dry_run` holds it to what real ranks take on the CPU.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass

from torch import nn

from ray_jobs.step_memory import StepMemory, step_memory
from worldmodel.config import RunConfig
from worldmodel.layout import Layout
from worldmodel.model.student import SelfFlowStudent

# W ranks.

FP32, FP64 = 4, 8
BUCKET = 5_000_000  # gradients that DeepSpeed collects before it reduces them: reduce_bucket_size
REUSED_WITHIN = 10**9  # parameters: what DeepSpeed needs again so soon it keeps (stage3_max_reuse_distance)


@dataclass(frozen=True)
class WorkerMemory:
    """What libraries and CUDA's context take is not in it.

    Held from the first step to the last:
    weights, optimizer (fp32 master and both moments), gradients (sums of micro-batches), teacher (average and
    the weights that run), whole (gather=step: weights of student and teacher, gradients), buffers (what is
    sent and received, and the gradients' bucket), batches (latents and noise of a step).

    Beyond that, in a step: gathered (gather=block: whole weights), activations, passing (the worst moment
    within a forward, loss or backward). At other moments: building (the weights as they are drawn, whole),
    update (of the weights). From the first commit on: snapshot (the shards, copied to be written).

    On a GPU, `host` is what the process needs in the memory of the machine.
    """

    weights: int
    optimizer: int
    gradients: int
    teacher: int
    whole: int
    buffers: int
    batches: int
    gathered: int
    activations: int
    passing: int
    building: int
    update: int
    snapshot: int
    host: int
    checkpoint: int  # on disk, of all workers together

    @property
    def held(self) -> int:
        parts = (self.weights, self.optimizer, self.gradients, self.teacher, self.whole, self.buffers)
        return sum(parts) + self.batches

    @property
    def moments(self) -> dict[str, int]:
        """Bytes at the worst point of each. The first step has not been when the engine is built."""
        step = self.held + self.gathered + self.activations + self.passing
        return {
            "building": self.building + self.held - self.batches - self.buffers,
            "step": step,
            "update": self.held + self.update,
            "commit": step + self.snapshot,
        }

    @property
    def peak(self) -> int:
        return max(self.moments.values())

    @property
    def worst(self) -> str:
        """The moment of the peak."""
        return max(self.moments, key=self.moments.__getitem__)

    def as_facts(self) -> dict[str, int | str | dict[str, int]]:
        facts = asdict(self)
        del facts["checkpoint"]
        return facts | {"total": self.peak, "worst_at": self.worst, "moments": self.moments}


@dataclass(frozen=True)
class Counts:
    """Parameters: of the whole student, of its transformer, which is averaged, and of one rank's shard."""

    whole: int
    averaged: int
    shard: int
    largest_block: int
    largest_parameter: int
    value_bytes: int  # of a weight or an activation

    @classmethod
    def of(cls, student: SelfFlowStudent, workers: int) -> Counts:
        parameters = list(student.parameters())
        return cls(
            whole=_numel(student),
            averaged=_numel(student.transformer),
            # The last rank's share is padded to the length of the others.
            shard=sum(math.ceil(p.numel() / workers) for p in parameters),
            largest_block=max(_numel(block) for block in student.transformer.blocks),
            largest_parameter=max(math.ceil(p.numel() / workers) for p in parameters),
            value_bytes=parameters[0].element_size(),
        )


def sizes(cfg: RunConfig, layout: Layout, student: SelfFlowStudent, *, on_gpu: bool = False) -> WorkerMemory:
    """student: on the meta device, in the precision that it runs in."""
    count = Counts.of(student, cfg.train.workers)
    step = step_memory(cfg, layout, student, on_gpu=on_gpu)
    micro_batches = math.ceil(cfg.train.micro_batches * cfg.train.sequence_parallel / cfg.train.workers)
    state = zero3_state(count)
    stored = count.shard * 3 * FP32 + math.ceil(count.averaged / cfg.train.workers) * FP32
    drawn_whole = count.whole * FP32  # the weights as they were drawn, whole on each rank
    on_device = count.whole * count.value_bytes if on_gpu else drawn_whole
    return WorkerMemory(
        **state,
        **(_by_step if cfg.train.gather == "step" else _by_block)(cfg, count),
        **_of_step(step, micro_batches, cfg.train.sequence_parallel),
        building=on_device,
        snapshot=0 if on_gpu else stored,
        host=max(drawn_whole, stored) if on_gpu else 0,  # built, and copied to be written, there
        checkpoint=count.whole * 3 * FP32 + count.averaged * FP32,
    )


def zero3_state(count: Counts) -> dict[str, int]:
    """What is in shards."""
    return {
        "weights": count.shard * count.value_bytes,
        "optimizer": count.shard * 3 * FP32,
        "gradients": count.shard * FP32,
        "teacher": count.shard * (FP32 + count.value_bytes),  # laid out like the student, heads and all
    }


def _by_step(cfg: RunConfig, count: Counts) -> dict[str, int]:
    """Whole weights and sums of gradients from start to end, sent and received by buffers of a shard each."""
    width, is_alone = count.value_bytes, cfg.train.workers == 1
    sums = count.shard * cfg.train.workers * FP32
    return {
        "whole": sums + (0 if is_alone else (count.whole + count.averaged) * width),
        "buffers": 0 if is_alone else count.shard * (2 * width + FP32),
        "gathered": 0,
        "update": count.largest_parameter * FP64,  # for its norm
    }


def _by_block(cfg: RunConfig, count: Counts) -> dict[str, int]:
    """What forward gathered and backward needs again soon stays whole: all but very large models."""
    soon = 0 if cfg.train.workers == 1 else min(count.whole, REUSED_WITHIN // 2)
    return {
        "whole": 0,
        "buffers": min(count.whole, BUCKET) * FP32,
        "gathered": (soon + count.largest_block) * count.value_bytes,
        "update": count.shard * FP32,  # gradients in one piece
    }


def _of_step(step: StepMemory, micro_batches: int, shared_by: int) -> dict[str, int]:
    return {
        "batches": step.batch * micro_batches,
        "activations": step.kept // shared_by,  # of whole clips, whose tokens lie on several ranks
        "passing": step.passing,
    }


def _numel(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
