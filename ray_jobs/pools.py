"""How many decode and encode actors a run needs: what a clip costs, and how many clips a second it trains on.

n actors give n / cost clips a second. A pool is BUSY at the most, because clips differ and a stream that runs
at its limit waits for the dear ones: below it, the micro-batches that wait ready cover them and the stall
stays under 2 %.
"""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, median
from typing import Any

import numpy as np
import psutil

from ray_jobs.buckets import buckets_of
from ray_jobs.plan import Plan, Sample
from ray_jobs.run_folder import RunFolder
from worldmodel.config import RunConfig

BUSY = 0.85
MEASURED_CLIPS = 6
WARM_ROWS = 3  # steps of a resumed run that count compilers and caches
# Assumed for a step that was not measured: a GPU of a data centre at half its dense bf16 rate, so that the
# pool is rather too large, and a core at what its matrix products give at best.
GPU_FLOPS, CORE_FLOPS = 400e12, 50e9
MAX_STALL = 0.02
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ClipCost:
    """Seconds of one core for one clip; on_gpu_s: of an actor's time besides, where a GPU encodes."""

    decode_s: float
    encode_s: float
    on_gpu_s: float = 0.0

    @property
    def cores_s(self) -> float:
        return self.decode_s + self.encode_s

    @property
    def actor_s(self) -> float:
        return self.cores_s + self.on_gpu_s


def num_actors(cost: ClipCost, clips_per_s: float, *, workers: int) -> int:
    """Actors of one training worker that keep it fed."""
    return max(1, math.ceil(cost.actor_s * clips_per_s / BUSY / workers - 1e-9))


def stall_fraction(cost: ClipCost, clips_per_s: float, cores: float) -> float:
    """Share of the time that training waits when decoding and encoding have so many cores."""
    needed = cost.cores_s * clips_per_s
    return max(0.0, 1 - cores / needed) if needed else 0.0


def starvation(cost: ClipCost, clips_per_s: float, cores: float) -> str:
    """One line when the cores are too few: what would wait, how much, and what to do. Empty when they do."""
    waits = stall_fraction(cost, clips_per_s, cores)
    if waits <= MAX_STALL:
        return ""
    what = "decoding" if cost.decode_s >= cost.encode_s else "encoding"
    return (
        f"{what} needs {cost.cores_s * clips_per_s:.3g} cores for {clips_per_s:.3g} clips/s; {cores:.3g} "
        f"{'is' if cores == 1 else 'are'} free: training would wait {waits:.0%} of the time; add CPUs, set "
        "data.cache and run `worldmodel tokenize` first, or lower data.fps"
    )


def demand(cfg: RunConfig, *, flops_per_step: float = 0.0, rows: Sequence[dict[str, float]] = ()) -> float:
    """Clips a second that training takes when it never waits: from its own steps, else from arithmetic.

    rows: of metrics.jsonl, of a run that is resumed.
    """
    busy_s = [row["step_s"] * (1 - row["stall_fraction"]) for row in rows if "loss" in row][WARM_ROWS:]
    clips = cfg.train.micro_batches * buckets_of(cfg)[0].batch_clips  # whose FLOPs they are
    if busy_s:
        return clips / median(busy_s)
    rate = GPU_FLOPS if _is_on_gpu(cfg) else CORE_FLOPS * cfg.train.threads
    return clips / (flops_per_step / (rate * cfg.train.workers)) if flops_per_step else 0.0


def flops_of(cfg: RunConfig) -> float:
    """Of one step of all workers."""
    from avtok.load import codec_spec
    from ray_jobs.model_cost import build_on_meta, flops_per_step
    from worldmodel.layout import Layout

    layout = Layout.from_specs(cfg, codec_spec(cfg.codec.video), codec_spec(cfg.codec.audio))
    return flops_per_step(cfg, layout, build_on_meta(cfg, layout))


def rows_of(metrics_jsonl: Path) -> list[dict[str, float]]:
    """What a run has told of its steps; none where it has not begun."""
    with suppress(OSError, ValueError):
        return [json.loads(line) for line in metrics_jsonl.read_text("utf-8").splitlines()]
    return []


def measure_cost(plan: Plan, cfg: RunConfig, *, device: str = "cpu", clips: int = MEASURED_CLIPS) -> ClipCost:
    """Decodes and encodes a few clips, spread over the plan; those that are cached cost nothing."""
    from ray_jobs.stages import EncodeBatch

    encode = EncodeBatch(plan, cfg, device=device)
    chosen = _spread(plan.num_train, clips + 1)
    missing = [i for i in chosen if not encode.cache.holds(plan.sample(i), encode.geometry_of(i))]
    if not missing:
        return ClipCost(0.0, 0.0)
    samples = [(plan.sample(i), encode.geometry_of(i)) for i in missing]
    timed = _TimedReader(encode.encoder.reader)
    encode.encoder.reader = timed  # pyright: ignore[reportAttributeAccessIssue]
    _usable(encode, *samples[0])  # starts the decoder and what codecs set up once
    timed.core_s = 0.0
    wall, cores = time.perf_counter(), timed.cores_s()
    used = sum(_usable(encode, *sample) for sample in samples[1:] or samples)
    wall_s, cores_s = time.perf_counter() - wall, timed.cores_s() - cores
    per_clip = len(missing) / len(chosen) / max(1, used)
    gpu_s = max(0.0, wall_s - cores_s) if device != "cpu" else 0.0
    return ClipCost(timed.core_s * per_clip, max(0.0, cores_s - timed.core_s) * per_clip, gpu_s * per_clip)


def estimated_decode_s(manifests: Sequence[str], cfg: RunConfig) -> float:
    """Of a clip of data.clip_s, from what the index knows of its files; 0 where it knows nothing."""
    import pyarrow.parquet as pq

    costs: list[float] = []
    for manifest in manifests:
        with suppress(OSError, KeyError, ValueError):  # pyarrow's errors are both
            table = pq.read_table(manifest, columns=["decode_cost_s", "start_s", "end_s"])
            costs += [row["decode_cost_s"] or 0.0 for row in table.slice(0, 10_000).to_pylist()]
    return mean(costs) * cfg.data.clip_s if costs else 0.0


def free_cores(cfg: RunConfig) -> float:
    """Of the cluster, for decoding and encoding: all but those that training keeps busy."""
    from ray_jobs.cluster import real_cores

    busy = 1 if _is_on_gpu(cfg) else cfg.train.threads
    return max(0.5, real_cores() - cfg.train.workers * busy)


def with_sized_pool(plan: Plan, cfg: RunConfig, folder: RunFolder) -> RunConfig:
    """The run with a number of data.decode_actors; a warning says what would starve. Ray is connected.

    0 is measured, by a Ray task. A number that was given stays; where GPUs train, the index's estimate of
    decoding tells whether the CPUs are enough for it. On CPUs training is the slower one by far.
    """
    if cfg.data.decode_actors and not _is_on_gpu(cfg):
        return cfg
    rows = rows_of(folder.metrics)
    clips_per_s = demand(cfg, rows=rows) or demand(cfg, flops_per_step=flops_of(cfg))
    actors = cfg.data.decode_actors
    if actors:
        manifests = [str(path) for path in folder.manifests.values()]
        cost = ClipCost(0.0 if cfg.data.cache else estimated_decode_s(manifests, cfg), 0.0)
    else:
        cost = _measure_in_task(plan, cfg)
        placed = max(1, math.floor(_free_cpus(cfg)))
        actors = min(placed, num_actors(cost, clips_per_s, workers=cfg.train.workers))
    if starves := starvation(cost, clips_per_s, free_cores(cfg)):
        logger.warning(starves)
    return cfg.model_copy(update={"data": cfg.data.model_copy(update={"decode_actors": actors})})


def _measure_in_task(plan: Plan, cfg: RunConfig) -> ClipCost:
    import ray

    from ray_jobs.cluster import CPUS_PER_DECODER
    from ray_jobs.dataset import encode_device

    def measure(given: Plan) -> ClipCost:
        return measure_cost(given, cfg, device=encode_device(cfg))

    task = ray.remote(num_cpus=CPUS_PER_DECODER, num_gpus=cfg.data.encode_gpus)(measure)
    return ray.get(task.remote(plan))


def _free_cpus(cfg: RunConfig) -> float:
    """How many actors of one worker Ray can place."""
    import ray

    from ray_jobs.cluster import CPUS_PER_DECODER

    return (ray.cluster_resources().get("CPU", 1) / cfg.train.workers - 1) / CPUS_PER_DECODER


def _is_on_gpu(cfg: RunConfig) -> bool:
    if cfg.train.device != "auto":
        return cfg.train.device == "cuda"
    import ray

    return ray.is_initialized() and ray.cluster_resources().get("GPU", 0) > 0


def _spread(count: int, wanted: int) -> list[int]:
    return np.unique(np.linspace(0, count - 1, min(count, wanted)).astype(int)).tolist()


def _usable(encode: Any, sample: Sample, geometry: Any) -> bool:
    from avtok.media import ClipError

    try:
        encode.encoder.encode(sample, geometry)
    except ClipError:
        return False
    return True


class _TimedReader:
    """A reader that counts the seconds that its process and this one compute while it decodes."""

    def __init__(self, reader: Any) -> None:
        self.reader, self.core_s = reader, 0.0

    @property
    def pid(self) -> int:
        return self.reader.pid

    def cores_s(self) -> float:
        """Of both processes so far."""
        own_s = time.process_time()
        if self.pid == psutil.Process().pid:
            return own_s
        spent = psutil.Process(self.pid).cpu_times()
        return own_s + spent.user + spent.system

    def decode_clip(self, uri: str, **cut: Any) -> Any:
        before = self.cores_s()
        try:
            return self.reader.decode_clip(uri, **cut)
        finally:
            self.core_s += max(0.0, self.cores_s() - before)
