"""The stream: every rank runs its own Ray Data job over its slots of the plan, in planned order.

A block of the object store is one micro-batch: its columns are tensors of one shape, whatever its bucket, and
the first one is there as soon as it is made.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import ray
import torch
from ray.data import ActorPoolStrategy, Dataset, ExecutionResources

from ray_jobs.blocks import check_block
from ray_jobs.cluster import CPUS_PER_DECODER
from ray_jobs.errors import JobError
from ray_jobs.paced_executor import PacedExecutor
from ray_jobs.passes import PADDING
from ray_jobs.plan import Plan, rank_slots
from ray_jobs.stages import EncodeBatch, Row, to_latent_batch
from worldmodel.batch import LatentBatch
from worldmodel.config import RunConfig

# S steps, K slots of one rank in one step, R rows.

ROWS_PER_TASK = 4  # a few rows keep a retry cheap
MAX_TASKS = 4096
OBJECT_STORE_BYTES = 128 << 20  # of one rank's job: latents wait there, never pixels
PREFETCHED_ROWS = 4
logger = logging.getLogger(__name__)


class EncodeBatchActor(EncodeBatch):
    """EncodeBatch on a Ray worker; the plan comes from the object store, once per node."""

    def __init__(self, plan_ref: ray.ObjectRef, cfg: RunConfig) -> None:
        torch.set_num_threads(1)
        super().__init__(ray.get(plan_ref), cfg, device=encode_device(cfg))
        check_blocks(self)


def encode_device(cfg: RunConfig) -> str:
    """Where actors compute: a share of a GPU that Ray gave them, or their core."""
    return "cuda" if cfg.data.encode_gpus > 0 else "cpu"


def check_blocks(encode: EncodeBatch) -> None:
    """UserError for a bucket whose micro-batches are larger than a block may be."""
    for bucket, geometry in zip(encode.plan.buckets, encode.of_bucket, strict=True):
        check_block(bucket, encode.clip_bytes(geometry))


def rank_stream(
    plan: Plan, cfg: RunConfig, *, start_step: int, end_step: int, rank: int, world_size: int
) -> Iterator[list[LatentBatch]]:
    """For each step from start_step to end_step the rank's ceil(G / world_size) micro-batches, by Ray Data.

    The cluster needs data.decode_actors * 0.5 CPUs to spare for each rank; closing the iterator frees them.
    """
    slots_SK = rank_slots(
        start_step=start_step,
        end_step=end_step,
        micro_batches=cfg.train.micro_batches,
        rank=rank,
        world_size=world_size,
    )
    dataset = actor_dataset(
        "global_index",
        slots_SK.ravel(),
        EncodeBatchActor,
        {"plan_ref": ray.put(plan), "cfg": cfg},
        max(1, cfg.data.decode_actors),
        num_gpus=cfg.data.encode_gpus,
    )
    yield from _steps(iterate_rows(dataset), slots_SK)


def local_stream(
    plan: Plan, cfg: RunConfig, *, start_step: int, end_step: int, rank: int = 0, world_size: int = 1
) -> Iterator[list[LatentBatch]]:
    """The same batches as `rank_stream`, made in this process, without Ray."""
    slots_SK = rank_slots(
        start_step=start_step,
        end_step=end_step,
        micro_batches=cfg.train.micro_batches,
        rank=rank,
        world_size=world_size,
    )
    encode = EncodeBatch(plan, cfg)
    check_blocks(encode)
    yield from _steps((encode({"global_index": index}) for index in slots_SK.ravel()), slots_SK)


def held_out_batches(
    plan: Plan, cfg: RunConfig, *, num_clips: int, rank: int = 0, world_size: int = 1
) -> Iterator[LatentBatch]:
    """This rank's share of the first held-out clips in micro-batches of epoch -1, made in this process.

    Every rank gets equally many, the last ones padded, and of the same bucket at the same time: evaluation is
    collective.
    """
    encode = EncodeBatch(plan, cfg)
    ids = plan.held_out_ids[:num_clips]
    for number in np.unique(plan.bucket_of[ids]):
        own, size = ids[plan.bucket_of[ids] == number], plan.buckets[number].batch_clips
        for start in range(0, len(own), size * world_size):
            sample_ids_B = np.full(size, PADDING, dtype=np.int64)
            begin = start + rank * size
            chosen = own[begin : begin + size]
            sample_ids_B[: len(chosen)] = chosen
            yield to_latent_batch(encode.encode_batch(-1, -1, sample_ids_B, encode.of_bucket[number]))


def actor_dataset(
    column: str,
    values_R: np.ndarray,
    stage: type,
    arguments: dict[str, Any],
    num_actors: int,
    *,
    num_gpus: float = 0.0,
    starts: np.ndarray | None = None,
    in_order: bool = True,
) -> Dataset:
    """A Ray Data job that maps numbers through a pool of actors.

    num_gpus: of each actor. starts: where each task begins in values_R, by default every few rows.
    """
    logging.getLogger("ray.data").setLevel(logging.WARNING)
    if starts is None:
        starts = np.arange(0, len(values_R), max(ROWS_PER_TASK, -(-len(values_R) // MAX_TASKS)))
    # blocks are put by this process: a read stage would need a worker and a CPU of its own
    tasks = [pa.table({column: values}) for values in np.split(values_R, starts[1:])]
    num_actors = max(1, min(num_actors, len(tasks)))
    dataset = ray.data.from_blocks(tasks).map(
        stage,  # pyright: ignore[reportArgumentType]
        fn_constructor_kwargs=arguments,
        compute=ActorPoolStrategy(size=num_actors),
        num_cpus=CPUS_PER_DECODER,
        num_gpus=num_gpus or None,
    )
    context = dataset.context
    context.enable_progress_bars = False
    context.custom_execution_callback_classes = [PacedExecutor]
    context.target_max_block_size = 1  # so that a block is one row: the next one begins above this size
    context.execution_options.preserve_order = in_order
    context.execution_options.resource_limits = ExecutionResources(
        cpu=num_actors * CPUS_PER_DECODER,
        gpu=num_actors * num_gpus,
        object_store_memory=OBJECT_STORE_BYTES,
    )
    return dataset


def iterate_rows(dataset: Dataset) -> Iterator[Row]:
    """Rows of arrays, as the stage made them."""
    for batch in dataset.iter_batches(batch_size=1, batch_format="numpy", prefetch_batches=PREFETCHED_ROWS):
        assert isinstance(batch, dict), "batch_format numpy gives dicts"
        yield {name: column[0] for name, column in batch.items()}


def _steps(rows: Iterator[Row], slots_SK: np.ndarray) -> Iterator[list[LatentBatch]]:
    warned = False
    for slots_K in slots_SK:
        step = []
        for index in slots_K:
            row = next(rows, None)
            if row is None or int(row["global_index"]) != index:
                found = "nothing" if row is None else f"micro-batch {row['global_index']}"
                raise JobError(f"the stream came out of order: expected micro-batch {index}, got {found}")
            if row["cache_error"] and not warned:
                logger.warning("%s; going on without writing it", row["cache_error"])
                warned = True
            step.append(to_latent_batch(row))
        yield step
