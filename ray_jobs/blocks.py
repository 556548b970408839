"""How large a block of the stream may be: one micro-batch, which is all that passes the object store."""

from __future__ import annotations

import math

from avtok.spec import CodecSpec
from ray_jobs.buckets import Bucket, buckets_of
from ray_jobs.errors import UserError
from worldmodel.config import RunConfig

MAX_BLOCK_BYTES = 32 << 20
MIB = 1 << 20


def check_block(bucket: Bucket, clip_bytes: int) -> None:
    """UserError when a micro-batch of this bucket is larger than a block may be."""
    if clip_bytes * bucket.batch_clips <= MAX_BLOCK_BYTES:
        return
    given = (
        f"a micro-batch of {bucket.batch_clips} clips takes {clip_bytes * bucket.batch_clips / MIB:.1f} MiB"
    )
    most = MAX_BLOCK_BYTES // clip_bytes
    advice = f"set data.batch_clips={most} (or lower data.batch_tokens) and raise train.micro_batches"
    raise UserError(
        f"data: bucket {bucket.name}: {given}, a block of the stream holds {MAX_BLOCK_BYTES // MIB} MiB; "
        + (advice if most else "make its clips shorter or smaller")
    )


def check_latents(cfg: RunConfig, video: CodecSpec, audio: CodecSpec) -> None:
    """UserError for buckets whose latents alone are too large, before any codec or encoder is loaded."""
    try:
        buckets = buckets_of(cfg)
        for bucket in buckets:
            frames, samples = bucket.clip_s * cfg.data.fps, bucket.clip_s * cfg.data.sample_rate
            shapes = (
                video.latent_shape(video.steps_of_units(round(frames)), bucket.size),
                audio.latent_shape(audio.steps_of_units(round(samples))),
            )
            check_block(bucket, sum(2 * math.prod(shape) for shape in shapes))
    except ValueError as error:
        raise UserError(str(error)) from None
