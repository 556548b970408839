"""Refuses a run that a declared cluster's workers cannot hold, with the nearest settings that they can."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from pydantic import ValidationError

from avtok.load import codec_spec
from ray_jobs.buckets import Kinds, clip_tokens, largest_buckets, shapes_differ
from ray_jobs.declared_cluster import Cluster
from ray_jobs.errors import UserError
from ray_jobs.model_cost import build_on_meta
from ray_jobs.worker_memory import WorkerMemory, sizes
from worldmodel.config import RunConfig
from worldmodel.layout import Layout

GB = 1 << 30
Changes = dict[str, Any]  # by dotted name


@dataclass(frozen=True)
class Margin:
    """Beyond the bytes that are counted: a share of them that the allocator holds free, and libraries."""

    share: float
    libraries_gb: float

    def over(self, num_bytes: int) -> float:
        """GB."""
        return num_bytes * (1 + self.share) / GB + self.libraries_gb


# Assumed: CUDA's context, cuBLAS and NCCL, and what PyTorch's allocator cannot use.
GPU_MARGIN = Margin(0.05, 2.0)
# glibc keeps what is freed, as `worldmodel bench dry_run` measures it; a worker's imports take 0.7 GB, Ray's
# own some more.
CPU_MARGIN = Margin(0.35, 1.0)
SIZES = {  # of configs/av_*.yaml: depth, width, head_dim
    "av_2b": (28, 1536, 128),
    "av_1b": (24, 1152, 128),
    "av_300m": (16, 768, 128),
    "av_100m": (12, 512, 128),
    "av_25m": (8, 320, 64),
}


@dataclass(frozen=True)
class Need:
    """GB that one worker needs of one memory, and what there is."""

    memory: str
    gb: float
    limit_gb: float
    why: str

    @property
    def fits(self) -> bool:
        return self.gb <= self.limit_gb


def refuse_too_many_workers(cfg: RunConfig, cluster: Cluster) -> None:
    """UserError, with the most workers that are declared and that the config goes with."""
    if cluster.workers is None or cfg.train.workers <= cluster.workers:
        return
    fewer = (n for n in range(cluster.workers, 0, -1) if _go_together(cfg, {"train.workers": n}))
    remedy = "".join(f"use --set train.workers={most}, or " for most in [next(fewer, None)] if most)
    raise UserError(
        f"train.workers={cfg.train.workers}, but the cluster has workers={cluster.workers}; {remedy}"
        "give --cluster a larger one"
    )


def refuse_what_cannot_fit(
    cfg: RunConfig, cluster: Cluster, *, on_gpu: bool, memory: WorkerMemory, kinds: Kinds = None
) -> None:
    """UserError, with settings that do fit if there are any. Nothing where no memory is declared. kinds: of
    micro-batches, where it is known which come."""
    lacking = [need for need in needs(memory, cluster, on_gpu=on_gpu) if not need.fits]
    if not lacking:
        return
    worst = max(lacking, key=lambda need: need.gb / need.limit_gb)
    remedy = "no smaller setting that is tried here fits; use workers with more memory"
    if (found := nearest_that_fits(cfg, cluster, on_gpu=on_gpu, kinds=kinds)) is not None:
        changes, fitting = found
        after = next(n for n in needs(fitting, cluster, on_gpu=on_gpu) if n.memory == worst.memory)
        settings = " ".join(f"--set {name}={_written(value)}" for name, value in changes.items())
        remedy = f"use {settings}: {after.gb:.3g} GB"
    which = f" for {memory.bucket}" if shapes_differ(cfg, kinds) else ""
    raise UserError(
        f"a worker needs {worst.gb:.3g} GB of {worst.memory} memory{which} ({worst.why}), but the cluster "
        f"has {worst.limit_gb:g} GB; {remedy}"
    )


def needs(memory: WorkerMemory, cluster: Cluster, *, on_gpu: bool) -> list[Need]:
    limits = [("CPU", cluster.cpu_memory_gb, memory.host if on_gpu else memory.peak, CPU_MARGIN)]
    if on_gpu:
        limits.insert(0, ("GPU", cluster.gpu_memory_gb, memory.peak, GPU_MARGIN))
    found = []
    for name, limit_gb, num_bytes, margin in limits:
        if limit_gb is not None:
            why = (
                f"{num_bytes / GB:.3g} counted, {margin.share:.0%} that the allocator holds free, "
                f"{margin.libraries_gb:g} for libraries"
            )
            found.append(Need(name, margin.over(num_bytes), limit_gb, why))
    return found


def nearest_that_fits(
    cfg: RunConfig, cluster: Cluster, *, on_gpu: bool, kinds: Kinds = None
) -> tuple[Changes, WorkerMemory] | None:
    """Changes in order of least harm, each tried; what turns out not to be needed is taken back."""

    def tried(changes: Changes) -> tuple[WorkerMemory, float]:
        """And how much of the scarcest memory it needs: 1 is all of it."""
        memory = memory_of(changed(cfg, changes), on_gpu=on_gpu, kinds=kinds)
        return memory, max(n.gb / n.limit_gb for n in needs(memory, cluster, on_gpu=on_gpu))

    chosen: Changes = {}
    _, share = tried(chosen)
    for alternatives in (
        _in_shards,
        _recomputed,
        _by_block,
        lambda cfg, cluster: _fewer_clips(cfg, kinds),
        _more_workers,
        _offloaded,
        _smaller,
    ):
        strongest: Changes | None = None
        for changes in alternatives(changed(cfg, chosen), cluster):
            if not _go_together(cfg, chosen | changes):
                continue
            _, found = tried(chosen | changes)
            if found <= 1:
                return _least(chosen, changes, tried, lambda some: _go_together(cfg, some))
            if found < share:
                share, strongest = found, changes
        chosen |= strongest or {}
    return None


def _least(
    chosen: Changes,
    last: Changes,
    tried: Callable[[Changes], tuple[WorkerMemory, float]],
    goes_together: Callable[[Changes], bool],
) -> tuple[Changes, WorkerMemory]:
    """Without the earlier changes that the last one makes needless. Clips and micro-batches go together."""
    kept = chosen | last
    for group in (("train.workers",), ("data.batch_clips", "train.micro_batches"), *((n,) for n in chosen)):
        without = {name: value for name, value in kept.items() if name not in group or name in last}
        if without != kept and goes_together(without) and tried(without)[1] <= 1:
            kept = without
    return kept, tried(kept)[0]


def changed(cfg: RunConfig, changes: Changes) -> RunConfig:
    values = cfg.model_dump()
    for name, value in changes.items():
        part, key = name.split(".")
        values[part][key] = value
    return RunConfig.model_validate(values)


def _go_together(cfg: RunConfig, changes: Changes) -> bool:
    try:
        changed(cfg, changes)
    except ValidationError:
        return False
    return True


def memory_of(cfg: RunConfig, *, on_gpu: bool, kinds: Kinds = None) -> WorkerMemory:
    """Kept: a search comes by the same config more than once."""
    return _memory_of(cfg.model_dump_json(), on_gpu, kinds)


@lru_cache(maxsize=64)
def _memory_of(config: str, on_gpu: bool, kinds: Kinds) -> WorkerMemory:
    cfg = RunConfig.model_validate_json(config)
    layout = Layout.from_specs(cfg, codec_spec(cfg.codec.video), codec_spec(cfg.codec.audio))
    return sizes(cfg, build_on_meta(cfg, layout), on_gpu=on_gpu, kinds=kinds)


def _in_shards(cfg: RunConfig, cluster: Cluster) -> Iterator[Changes]:
    if cfg.train.zero_stage != 3 and cfg.train.workers > 1:
        yield {"train.zero_stage": 3}


def _recomputed(cfg: RunConfig, cluster: Cluster) -> Iterator[Changes]:
    if not cfg.train.recompute:
        yield {"train.recompute": True}


def _by_block(cfg: RunConfig, cluster: Cluster) -> Iterator[Changes]:
    if cfg.train.gather != "block":
        yield {"train.gather": "block"}


def _fewer_clips(cfg: RunConfig, kinds: Kinds) -> Iterator[Changes]:
    """At once, with as many in a step: parts of the micro-batch with most tokens."""
    buckets, tokens = largest_buckets(cfg, kinds), cfg.data.batch_tokens
    clips = max(buckets, key=lambda b: b.batch_clips * clip_tokens(cfg, b.clip_s, b.size)).batch_clips
    for parts in range(2, clips + 1):
        if clips % parts == 0:
            fewer = {"data.batch_clips": clips // parts}
            if tokens is not None:
                fewer = {"data.batch_tokens": tokens // parts}
            yield fewer | {"train.micro_batches": cfg.train.micro_batches * parts}


def _more_workers(cfg: RunConfig, cluster: Cluster) -> Iterator[Changes]:
    """As many as are declared, and none without a micro-batch."""
    most = min(cluster.workers or 0, cfg.train.micro_batches)
    workers = 2 * cfg.train.workers
    while workers <= most:
        yield {"train.workers": workers}
        workers *= 2
    if most > cfg.train.workers and workers // 2 != most:
        yield {"train.workers": most}


def _offloaded(cfg: RunConfig, cluster: Cluster) -> Iterator[Changes]:
    """To the machine of a GPU; on a CPU it is the same memory."""
    if cluster.has_gpus and not cfg.train.offload_optimizer and cfg.train.zero_stage == 3:
        yield {"train.gather": "block", "train.offload_optimizer": True}


def _smaller(cfg: RunConfig, cluster: Cluster) -> Iterator[Changes]:
    for depth, width, head_dim in SIZES.values():
        if depth * width**2 < cfg.model.depth * cfg.model.width**2:
            yield {"model.depth": depth, "model.width": width, "model.head_dim": head_dim}


def _written(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
