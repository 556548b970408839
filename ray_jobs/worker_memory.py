"""Bytes of one training worker and when it needs most.

Each kind is a number of its own. The peak is the worst of four moments (an evaluation keeps nothing);
`worldmodel bench dry_run` holds it to what real ranks take on the CPU.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass

from ray_jobs.buckets import Bucket, Kinds, held_buckets, shaped_layout
from ray_jobs.state_memory import FP32, Counts, state_bytes, stored_bytes
from ray_jobs.step_memory import step_memory
from worldmodel.config import RunConfig
from worldmodel.model.student import SelfFlowStudent

# W ranks.
STATE = (
    *("weights", "optimizer", "gradients", "teacher", "whole", "buffers", "gathered", "micro_gradients"),
    "update",
)


@dataclass(frozen=True)
class WorkerMemory:
    """What libraries and CUDA's context take is not in it.

    Held from the first step to the last:
    weights, optimizer (fp32 master and both moments), gradients (sums of micro-batches), teacher (average and
    the weights that run), whole (gather=step: weights of student and teacher, gradients), buffers (what is
    sent and received, and the gradients' bucket), batches (latents and noise of a step).

    Beyond that, in a step: gathered (gather=block: whole weights), activations, passing (the worst moment
    within a forward, loss or backward), micro_gradients (below ZeRO-3: of one micro-batch, at the end of its
    backward, when no activations are left). At other moments: building (the weights as they are
    drawn, whole), update (of the weights). From the first commit on: snapshot (the shards, copied to be
    written).

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
    micro_gradients: int
    building: int
    update: int
    snapshot: int
    host: int
    checkpoint: int  # on disk, of all workers together
    bucket: Bucket  # of the micro-batches that need all this

    @property
    def held(self) -> int:
        parts = (self.weights, self.optimizer, self.gradients, self.teacher, self.whole, self.buffers)
        return sum(parts) + self.batches

    @property
    def moments(self) -> dict[str, int]:
        """Bytes at the worst point of each. The first step has not been when the engine is built."""
        passing = self.passing + max(self.activations, self.micro_gradients)
        step = self.held + self.gathered + passing
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
        del facts["checkpoint"], facts["bucket"]
        return facts | {"total": self.peak, "worst_at": self.worst, "moments": self.moments}


def sizes(
    cfg: RunConfig, student: SelfFlowStudent, *, on_gpu: bool = False, kinds: Kinds = None
) -> WorkerMemory:
    """With micro-batches of the bucket that needs most, of those kinds. student: on the meta device, in the
    precision that it runs in."""
    found = [_sizes(cfg, bucket, student, on_gpu=on_gpu) for bucket in held_buckets(cfg, kinds)]
    return max(found, key=lambda memory: memory.peak)


def _sizes(cfg: RunConfig, bucket: Bucket, student: SelfFlowStudent, *, on_gpu: bool) -> WorkerMemory:
    count, layout = Counts.of(student, cfg.train.workers), shaped_layout(cfg, bucket.clip_s, bucket.size)
    step = step_memory(cfg, layout, student, bucket.batch_clips, on_gpu=on_gpu)
    micro_batches = math.ceil(cfg.train.micro_batches * cfg.train.sequence_parallel / cfg.train.workers)
    state, stored = state_bytes(cfg, count, micro_batches), stored_bytes(count)
    drawn_whole = count.whole * FP32  # the weights as they were drawn, whole on each rank
    on_device = count.whole * count.value_bytes if on_gpu else drawn_whole
    elsewhere = 0
    if cfg.train.offload_optimizer and on_gpu:
        elsewhere = state.pop("optimizer") + state.pop("gradients") + count.shard * FP32
        state["teacher"] -= count.shard * FP32
    return WorkerMemory(
        **dict.fromkeys(STATE, 0) | state,
        batches=step.batch * micro_batches,
        # Of whole clips, whose tokens lie on several ranks.
        activations=step.kept // cfg.train.sequence_parallel,
        passing=step.passing,
        building=on_device,
        snapshot=0 if on_gpu else stored,
        # Built, copied to be written, and where it is offloaded kept there.
        host=max(drawn_whole, stored) + elsewhere if on_gpu else 0,
        checkpoint=(count.trained * 3 + count.averaged) * FP32,
        bucket=bucket,
    )
