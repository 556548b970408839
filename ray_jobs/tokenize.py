"""`worldmodel tokenize`: fill the latent cache with all clips, held-out ones too, by one Ray Data job.

It has the whole cluster: one actor for each core, or for each share of a GPU. A task is the cuts of one file
in time order, so that a remote file is fetched once and its index is read once.
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import ray
import torch

from ray_jobs.cluster import encoding_slots
from ray_jobs.dataset import MAX_TASKS, actor_dataset, encode_device, iterate_rows
from ray_jobs.errors import JobError, UserError
from ray_jobs.index import Progress
from ray_jobs.plan import Plan
from ray_jobs.stages import EncodeBatch, Row
from worldmodel.config import RunConfig

CUTS_PER_TASK = 16  # of one file at the most: the end of a long film must not wait for its beginning


class FillCacheActor:
    """Encodes one clip into the cache; only what became of it is returned."""

    def __init__(self, plan_ref: ray.ObjectRef, cfg: RunConfig) -> None:
        torch.set_num_threads(1)
        self.encoder = EncodeBatch(ray.get(plan_ref), cfg, device=encode_device(cfg))

    def __call__(self, row: Row) -> Row:
        sample_id = int(row["sample_id"])
        clip = self.encoder.fill_cache(sample_id)
        return {
            "sample_id": sample_id,
            "reason": clip.reason,
            "was_cached": clip.was_cached,
            "cache_error": clip.cache_error,
            "bytes": clip.cached_bytes,
        }


def tokenize(cfg: RunConfig, plan: Plan, progress: Progress | None = None) -> dict[str, Any]:
    """{planned, encoded, cached, bytes, seconds, clips_per_s, actors, quarantined}.

    quarantined is a list of {sample_id, uri, reason}. cached were there before and are not opened; bytes are
    of the files that were written. The caller has initialised Ray. UserError without data.cache, JobError if
    it cannot be written.
    """
    if not cfg.data.cache:
        raise UserError("data.cache is empty; name the folder to fill with --set data.cache=DIR")
    began = time.monotonic()
    ids, starts = by_file(plan)
    num_actors = min(encoding_slots(cfg), len(starts))
    dataset = actor_dataset(
        "sample_id",
        ids,
        FillCacheActor,
        {"plan_ref": ray.put(plan), "cfg": cfg},
        num_actors,
        num_gpus=cfg.data.encode_gpus,
        starts=starts,
        in_order=False,
    )
    num_cached, num_bytes, quarantined = 0, 0, []
    for done, row in enumerate(iterate_rows(dataset), start=1):
        if row["cache_error"]:
            raise JobError(
                f"{row['cache_error']}; {done - 1} of {plan.num_samples} clips are done, run again to go on"
            )
        num_cached += bool(row["was_cached"])
        num_bytes += int(row["bytes"])
        if row["reason"]:
            sample_id = int(row["sample_id"])
            quarantined.append(
                {"sample_id": sample_id, "uri": plan.sample(sample_id).uri, "reason": str(row["reason"])}
            )
        if progress:
            progress(done, plan.num_samples)
    seconds = time.monotonic() - began
    encoded = plan.num_samples - num_cached - len(quarantined)
    return {
        "planned": plan.num_samples,
        "encoded": encoded,
        "cached": num_cached,
        "bytes": num_bytes,
        "seconds": round(seconds, 1),
        "clips_per_s": round(encoded / seconds, 2),
        "actors": num_actors,
        "quarantined": sorted(quarantined, key=lambda bad: bad["sample_id"]),
    }


def by_file(plan: Plan) -> tuple[np.ndarray, np.ndarray]:
    """All sample ids, file by file in time order, and where each task begins: at a file or in a long one."""
    encoded = plan.table["uri"].combine_chunks().dictionary_encode()
    file_S = encoded.indices.to_numpy()  # in order of appearance
    ids = np.lexsort((plan.table["start_s"].to_numpy(), file_S))
    first = np.flatnonzero(np.diff(file_S[ids], prepend=-1))
    into = np.arange(len(ids)) - np.repeat(first, np.diff(np.append(first, len(ids))))
    starts = np.flatnonzero(into % CUTS_PER_TASK == 0)
    return ids, starts[:: max(1, -(-len(starts) // MAX_TASKS))]
