"""How long a step takes on a declared cluster: an estimate from rates, not a simulation."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

from ray_jobs.declared_cluster import Cluster
from ray_jobs.state_memory import FP32, REUSED_WITHIN, Counts
from worldmodel.config import RunConfig
from worldmodel.flops import StepFlops, step_flops
from worldmodel.layout import Layout
from worldmodel.self_flow import layers_of

GIGA = 1e9
HOST_MEMORY_GB_S = 50.0  # assumed: a GPU's share of a server's
STATE_PASSES = 14  # reads and writes of fp32 values for each parameter: AdamW 4 and 3, gradients 3, average 4


@dataclass(frozen=True)
class StepTime:
    """Seconds of one step. Nothing overlaps: the engine gathers, computes and reduces in turn."""

    compute_s: float
    communication_s: float
    update_s: float

    @property
    def step_s(self) -> float:
        return self.compute_s + self.communication_s + self.update_s

    def as_facts(self, cfg: RunConfig, cluster: Cluster) -> dict[str, Any]:
        return asdict(self) | {
            "step_s": self.step_s,
            "run_hours": self.step_s * cfg.train.steps / 3600,
            "efficiency": cluster.efficiency,
        }


def step_time(
    cfg: RunConfig, layout: Layout, cluster: Cluster, count: Counts, batch_clips: int
) -> StepTime | None:
    """None where the cluster's rate is not known; what else is not known takes no time."""
    if cluster.tflops is None:
        return None
    shared_by = cfg.train.sequence_parallel
    micro_batches = math.ceil(
        cfg.train.micro_batches * shared_by / cfg.train.workers
    )  # of the worker with most
    flops = step_flops(cfg, layout, batch_clips)
    compute_s = micro_batches * computed(flops, cfg) / shared_by
    compute_s /= cluster.tflops * 1e12 * cluster.efficiency
    sent = received_bytes(cfg, count, micro_batches)
    communication_s = sent / (cluster.interconnect_gb_s * GIGA) if cluster.interconnect_gb_s else 0.0
    return StepTime(compute_s, communication_s, _update_s(cfg, cluster, count))


def _update_s(cfg: RunConfig, cluster: Cluster, count: Counts) -> float:
    rate = cluster.memory_gb_s
    if cfg.train.offload_optimizer and rate:
        rate = min(rate, HOST_MEMORY_GB_S)
    stepped = count.trained if cfg.train.zero_stage == 0 else count.shard
    return stepped * STATE_PASSES * FP32 / (rate * GIGA) if rate else 0.0


def computed(flops: StepFlops, cfg: RunConfig) -> float:
    """Of one micro-batch, recomputation included."""
    parts = 2 if cfg.train.lora else 3  # forward and one or two products backward
    again = flops.student / parts if cfg.train.recompute else 0.0
    return flops.total + again


def received_bytes(cfg: RunConfig, count: Counts, micro_batches: int) -> float:
    """By one worker in a step: its weights come from the others, its gradients from all of them, in fp32."""
    width, from_others = count.value_bytes, 1 - 1 / cfg.train.workers
    if cfg.train.zero_stage == 0:
        return from_others * 2 * count.trained * FP32  # to one after the other, and back
    if cfg.train.zero_stage < 3:
        sums = micro_batches if cfg.train.zero_stage == 2 else 1
        return from_others * (count.trained * (width + FP32 * sums) + count.averaged * width)
    if cfg.train.gather == "step":
        return from_others * (count.trained * (width + FP32) + count.averaged * width)
    # What is needed again soon is gathered once, what is not for backward too, recomputed or not.
    kept = min(count.whole, REUSED_WITHIN // 2)
    student = count.trained * FP32 + (2 * count.whole - kept) * width
    share = 0.0
    if cfg.objective.has_teacher:
        _, layer = layers_of(cfg.objective, cfg.model.depth)
        share = layer / cfg.model.depth
    teacher = share * (count.averaged + count.frozen) * width
    return from_others * micro_batches * (student + teacher)
