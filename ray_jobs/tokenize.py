"""`worldmodel tokenize`: fill the latent cache with all clips, held-out ones too, by one Ray Data job."""

from __future__ import annotations

from typing import Any

import numpy as np
import ray
import torch

from ray_jobs.dataset import actor_dataset, iterate_rows
from ray_jobs.errors import JobError, UserError
from ray_jobs.index import Progress
from ray_jobs.plan import Plan
from ray_jobs.stages import EncodeBatch, Row
from worldmodel.config import RunConfig


class FillCacheActor:
    """Encodes one clip into the cache; only what became of it is returned."""

    def __init__(self, plan_ref: ray.ObjectRef, cfg: RunConfig) -> None:
        torch.set_num_threads(1)
        self.encoder = EncodeBatch(ray.get(plan_ref), cfg)

    def __call__(self, row: Row) -> Row:
        sample_id = int(row["sample_id"])
        clip = self.encoder.encode(sample_id)
        return {
            "sample_id": sample_id,
            "reason": clip.reason,
            "was_cached": clip.was_cached,
            "cache_error": clip.cache_error,
        }


def tokenize(cfg: RunConfig, plan: Plan, progress: Progress | None = None) -> dict[str, Any]:
    """{planned, encoded, cached, quarantined: [{sample_id, uri, reason}]}; cached were there before.

    The caller has initialised Ray; as many actors run as in training. UserError without data.cache,
    JobError if it cannot be written.
    """
    if not cfg.data.cache:
        raise UserError("data.cache is empty; name the folder to fill with --set data.cache=DIR")
    dataset = actor_dataset(
        "sample_id",
        np.arange(plan.num_samples),
        FillCacheActor,
        {"plan_ref": ray.put(plan), "cfg": cfg},
        cfg.data.decode_actors * cfg.train.workers,
    )
    num_cached, quarantined = 0, []
    for done, row in enumerate(iterate_rows(dataset), start=1):
        if row["cache_error"]:
            raise JobError(
                f"{row['cache_error']}; {done - 1} of {plan.num_samples} clips are done, run again to go on"
            )
        num_cached += bool(row["was_cached"])
        if row["reason"]:
            sample_id = int(row["sample_id"])
            quarantined.append(
                {"sample_id": sample_id, "uri": plan.sample(sample_id).uri, "reason": str(row["reason"])}
            )
        if progress:
            progress(done, plan.num_samples)
    return {
        "planned": plan.num_samples,
        "encoded": plan.num_samples - num_cached - len(quarantined),
        "cached": num_cached,
        "quarantined": quarantined,
    }
