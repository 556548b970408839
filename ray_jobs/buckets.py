"""Buckets: clips of one length, size and kind. A micro-batch is of one bucket, so its shapes are fixed."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from avtok.load import codec_spec
from worldmodel.config import RunConfig

# N rows of a manifest, K candidates.

Kind = Literal["picture", "sound", "still"]


@dataclass(frozen=True)
class Bucket:
    """clip_s seconds at size (height, width), batch_clips of them in a micro-batch."""

    name: str
    kind: Kind
    clip_s: float
    size: tuple[int, int]
    batch_clips: int


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


def _bucket(cfg: RunConfig, kind: Kind, clip_s: float, size: tuple[int, int]) -> Bucket:
    shape = f"{clip_s:g}s-{size[0]}x{size[1]}-{cfg.data.fps}fps"
    name = {"picture": shape, "sound": f"{clip_s:g}s-sound", "still": f"still-{size[0]}x{size[1]}"}[kind]
    bucket = Bucket(name, kind, clip_s, size, cfg.data.batch_clips)
    if cfg.data.batch_tokens is None:
        return bucket
    return replace(bucket, batch_clips=max(1, cfg.data.batch_tokens // clip_tokens(cfg, clip_s, size)))


def clip_tokens(cfg: RunConfig, clip_s: float, size: tuple[int, int]) -> int:
    """Tokens of one clip in the model's sequence."""
    from worldmodel.layout import Layout  # imports torch, which a plan without a budget does not need

    data = cfg.data.model_copy(update={"clip_s": clip_s, "size": size})
    shaped = cfg.model_copy(update={"data": data})
    return Layout.from_specs(shaped, codec_spec(cfg.codec.video), codec_spec(cfg.codec.audio)).length


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
