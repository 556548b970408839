"""Buckets: clips of one length, size and kind. A micro-batch is of one bucket, so its shapes are fixed."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

import numpy as np

from avtok.load import codec_spec
from worldmodel.config import RunConfig

if TYPE_CHECKING:  # imports torch, which a plan without a budget does not need
    from worldmodel.layout import Layout

# N rows of a manifest, K candidates.

Kind = Literal["picture", "sound", "still"]
Kinds = frozenset[Kind] | None


@dataclass(frozen=True)
class Bucket:
    """clip_s seconds at size (height, width), batch_clips of them in a micro-batch."""

    name: str
    kind: Kind
    clip_s: float
    size: tuple[int, int]
    batch_clips: int

    def __str__(self) -> str:
        """Its micro-batch, for people."""
        many, at = "s"[: self.batch_clips != 1], f"{self.size[0]}x{self.size[1]}"
        if self.kind == "still":
            return f"{self.batch_clips} still{many} at {at}"
        what = "of sound alone" if self.kind == "sound" else f"at {at}"
        return f"{self.batch_clips} clip{many} of {self.clip_s} s {what}"

    def fits_into(self, other: Bucket) -> bool:
        """Whether a micro-batch of the other has no fewer clips, seconds and pixels."""
        own, theirs = ((b.batch_clips, b.clip_s, b.size[0] * b.size[1]) for b in (self, other))
        return all(n <= most for n, most in zip(own, theirs, strict=True))


def buckets_of(cfg: RunConfig) -> tuple[Bucket, ...]:
    """The bucket of data.clip_s and data.size first, then data.buckets, then those of sound alone and stills.

    Sound alone has the smallest picture there is, masked, and a still is one chunk long. ValueError where
    codec, patch and size do not divide.
    """
    data = cfg.data
    shapes = dict.fromkeys([(data.clip_s, data.size), *((b.clip_s, b.size) for b in data.buckets)])
    smallest = _smallest_size(cfg)
    found = [_bucket(cfg, "picture", clip_s, size) for clip_s, size in shapes]
    found += [_bucket(cfg, "sound", clip_s, smallest) for clip_s in dict.fromkeys(s[0] for s in shapes)]
    found += [_bucket(cfg, "still", cfg.chunk_s, size) for size in dict.fromkeys(s[1] for s in shapes)]
    return tuple(found)


def largest_buckets(cfg: RunConfig, kinds: Kinds = None) -> tuple[Bucket, ...]:
    """Those that a worker has to be large enough for: each fits into one of them, of equal ones the first.
    Of these kinds, where it is known which come."""
    kept: list[Bucket] = []
    for bucket in (bucket for bucket in buckets_of(cfg) if kinds is None or bucket.kind in kinds):
        if not any(bucket.fits_into(other) for other in kept):
            kept = [other for other in kept if not other.fits_into(bucket)] + [bucket]
    return tuple(kept)


def held_buckets(cfg: RunConfig, kinds: Kinds = None) -> tuple[Bucket, ...]:
    """Those, and the first where steps have empty slots: it is the shape of an empty micro-batch."""
    first, largest = buckets_of(cfg)[0], largest_buckets(cfg, kinds)
    has_it = any(first.fits_into(bucket) for bucket in largest)
    return largest if has_it or not empty_slots(cfg) else (first, *largest)


def empty_slots(cfg: RunConfig) -> int:
    """Of a step: workers that share clips take as many micro-batches, and the last round may lack some."""
    return -cfg.train.micro_batches % (cfg.train.workers // cfg.train.sequence_parallel)


def shapes_differ(cfg: RunConfig, kinds: Kinds = None) -> bool:
    """Whether it has to be told which micro-batch is the largest: else it is that of data.clip_s."""
    return bool(cfg.data.buckets or cfg.data.batch_tokens or (kinds is not None and "picture" not in kinds))


def _bucket(cfg: RunConfig, kind: Kind, clip_s: float, size: tuple[int, int]) -> Bucket:
    shape = f"{clip_s:g}s-{size[0]}x{size[1]}-{cfg.data.fps}fps"
    name = {"picture": shape, "sound": f"{clip_s:g}s-sound", "still": f"still-{size[0]}x{size[1]}"}[kind]
    bucket = Bucket(name, kind, clip_s, size, cfg.data.batch_clips)
    if cfg.data.batch_tokens is None:
        return bucket
    return replace(bucket, batch_clips=max(1, cfg.data.batch_tokens // clip_tokens(cfg, clip_s, size)))


def clip_tokens(cfg: RunConfig, clip_s: float, size: tuple[int, int]) -> int:
    """Tokens of one clip in the model's sequence."""
    return shaped_layout(cfg, clip_s, size).length


def shaped_layout(cfg: RunConfig, clip_s: float, size: tuple[int, int]) -> Layout:
    """Of clips of a bucket. ValueError where codec, patch and size do not divide."""
    from worldmodel.layout import Layout

    data = cfg.data.model_copy(update={"clip_s": clip_s, "size": size})
    shaped = cfg.model_copy(update={"data": data})
    return Layout.from_specs(shaped, codec_spec(cfg.codec.video), codec_spec(cfg.codec.audio))


def _smallest_size(cfg: RunConfig) -> tuple[int, int]:
    """One video token a step."""
    stride, patch = codec_spec(cfg.codec.video).spatial_stride, cfg.model.patch
    return stride[0] * patch[0], stride[1] * patch[1]


def nearest_size(height_N: np.ndarray, width_N: np.ndarray, sizes: list[tuple[int, int]]) -> np.ndarray:
    """Index of the size of each picture: the nearest aspect; of equal aspects the largest that it fills."""
    own_N = np.log(np.maximum(height_N, 1) / np.maximum(width_N, 1))
    aspects_K = np.array([np.log(h / w) for h, w in sizes])
    off_NK = np.abs(own_N[:, None] - aspects_K[None])
    ties_NK = off_NK <= off_NK.min(axis=1, keepdims=True) + 1e-9
    area_K = np.array([h * w for h, w in sizes], dtype=np.float64)
    fills_NK = (height_N[:, None] >= [h for h, _ in sizes]) & (width_N[:, None] >= [w for _, w in sizes])
    # A size that would have to be blown up loses to every one that is filled; of those the smallest wins.
    worth_NK = np.where(fills_NK, area_K, -area_K)
    return np.where(ties_NK, worth_NK, -np.inf).argmax(axis=1)
