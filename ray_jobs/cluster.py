"""Joins or starts a Ray cluster, and says before a job starts whether it fits."""

from __future__ import annotations

import logging
import os
import warnings

import psutil

from ray_jobs.errors import UserError
from worldmodel.config import RunConfig

# Decoding, rendering and training take turns on a small machine: with one logical CPU per core the stream would
# wait for CPUs that training holds.
LOCAL_CPUS = 8
OBJECT_STORE_BYTES = 512 << 20  # latents are small; a larger store only costs shared memory
QUIET = {
    "RAY_DEDUP_LOGS": "0",
    "RAY_TRAIN_V2_ENABLED": "1",
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",
}


def connect(address: str | None = None, *, num_cpus: int | None = None) -> None:
    """Joins the cluster at `address` (or of RAY_ADDRESS), else starts a local one. Does nothing when connected."""
    os.environ.update({k: os.environ.get(k, v) for k, v in QUIET.items()})
    warnings.filterwarnings("ignore", category=FutureWarning, module="ray")
    import ray

    if ray.is_initialized():
        return
    address = address or os.environ.get("RAY_ADDRESS")
    from ray_jobs.runtime_env import runtime_env

    if address:
        try:
            ray.init(
                address=address,
                log_to_driver=False,
                logging_level=logging.ERROR,
                runtime_env=runtime_env(local=False),
            )
        except ConnectionError as error:
            raise UserError(
                f"--address {address}: no Ray cluster answers ({str(error).splitlines()[0]})"
            ) from None
        return
    ray.init(
        num_cpus=num_cpus or max(LOCAL_CPUS, psutil.cpu_count() or 1),
        object_store_memory=OBJECT_STORE_BYTES,
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.ERROR,
        runtime_env=runtime_env(local=True),
    )


def check_fits(cfg: RunConfig) -> None:
    """UserError when the cluster has too few CPUs or GPUs for the training job and its stream."""
    import ray

    from ray_jobs.dataset import CPUS_PER_ACTOR

    have = ray.cluster_resources()
    per_worker = 1 + cfg.data.decode_actors * CPUS_PER_ACTOR
    needed = cfg.train.workers * per_worker
    if have.get("CPU", 0) < needed:
        most = int(have.get("CPU", 0) // per_worker)
        hint = f"use train.workers={most}" if most else "start Ray with more CPUs (ray start --num-cpus)"
        raise UserError(
            f"too few CPUs: train.workers={cfg.train.workers} with data.decode_actors={cfg.data.decode_actors} needs "
            f"{needed:g}, the cluster has {have.get('CPU', 0):g}; {hint}"
        )
    if cfg.train.device == "cuda" and have.get("GPU", 0) < cfg.train.workers:
        raise UserError(
            f"too few GPUs: train.workers={cfg.train.workers}, the cluster has {have.get('GPU', 0):g}; "
            f"use train.device=cpu or fewer workers"
        )
