"""Planned clips -> latents. Decode and encode are one call: pixels never enter the object store."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from avtok.decode import ClipError
from avtok.spec import CodecSpec
from ray_jobs.cache import CacheWriteError, LatentCache
from ray_jobs.clip_encoder import ClipEncoder, Geometry
from ray_jobs.metrics import RunMetrics
from ray_jobs.passes import PADDING
from ray_jobs.plan import Plan, Sample
from ray_jobs.targets import PREFIX
from worldmodel.batch import LatentBatch, ModalityLatents
from worldmodel.config import RunConfig
from worldmodel.model.text import encode_texts
from worldmodel.reasons import FORGOTTEN

# B clips, T latent steps, C channels, N text tokens, F frames, A action width.

__all__ = ["ClipLatents", "EncodeBatch", "Geometry", "Row", "to_latent_batch"]
Row = dict[str, Any]


@dataclass(frozen=True)
class ClipLatents:
    """One clip, float16 latents. A clip that could not be used is zeros, nothing valid, and says why."""

    arrays: dict[str, np.ndarray]
    reason: str = ""
    was_cached: bool = False
    cache_error: str = ""
    cached_bytes: int = 0  # that were written


class EncodeBatch:
    """A row that names a planned micro-batch -> a row of fixed-shape arrays. No clip makes it raise.

    device: of codecs and frozen encoders. Whatever they make is on the CPU.
    """

    def __init__(self, plan: Plan, cfg: RunConfig, *, device: str = "cpu") -> None:
        self.plan, self.cfg = plan, cfg
        self.encoder = ClipEncoder(cfg, device=device)
        self.video, self.audio = self.encoder.video, self.encoder.audio
        self.own = self._geometry(cfg.data.clip_s, cfg.data.size)
        self.of_bucket = [self._geometry(bucket.clip_s, bucket.size) for bucket in plan.buckets]
        self.metrics = RunMetrics(cfg.name)
        specs = (self.video.spec, self.audio.spec)
        self.cache = LatentCache(cfg.data.cache, specs, cfg.data, self.encoder.targets.key)

    def __call__(self, row: Row) -> Row:
        """{global_index} -> global_index and what `encode_batch` gives; -1 is the empty micro-batch."""
        global_index = int(row["global_index"])
        return {"global_index": global_index, **self.encode_batch(*self.plan.batch_at(global_index))}

    def encode_batch(
        self, epoch: int, batch_id: int, sample_ids_B: np.ndarray, geometry: Geometry | None = None
    ) -> Row:
        """The arrays of `to_latent_batch`, how many clips were cached and a cache error if any.

        geometry: None for that of the bucket, which all samples share.
        """
        bucket = self.plan.bucket(sample_ids_B)
        if geometry is None:
            geometry = self.of_bucket[self.plan.buckets.index(bucket)]
        clips = [self.encode(int(i), geometry) for i in sample_ids_B]
        stacked = {name: np.stack([clip.arrays[name] for clip in clips]) for name in clips[0].arrays}
        reasons = {int(i): clip.reason for i, clip in zip(sample_ids_B, clips, strict=True) if clip.reason}
        return stacked | {
            "epoch": epoch,
            "batch_id": batch_id,
            "sample_ids": sample_ids_B,
            "is_still": bucket.kind == "still",
            "reasons": json.dumps(reasons),
            "video_time_s": _spans_s(self.video.spec, geometry.video_steps),
            "audio_time_s": _spans_s(self.audio.spec, geometry.audio_steps),
            "num_cached": sum(clip.was_cached for clip in clips),
            "cache_error": next((clip.cache_error for clip in clips if clip.cache_error), ""),
        }

    def encode(self, sample_id: int, geometry: Geometry | None = None) -> ClipLatents:
        """The latents, text and actions of one sample; padding (-1) is an empty clip without a reason."""
        if sample_id == PADDING:
            return ClipLatents(self._empty(geometry or self.own))
        geometry = geometry or self.geometry_of(sample_id)
        sample, empty = self.plan.sample(sample_id), self._empty(geometry)
        if sample.forgotten:
            return ClipLatents(empty, reason=FORGOTTEN)
        conditions = self._text_and_actions(sample, geometry)
        cached = self.cache.read(sample, geometry)
        if cached is not None:
            self.metrics.add("cached_clips_total")
            return ClipLatents(empty | cached | conditions, was_cached=True)
        try:
            latents = self.encoder.encode(sample, geometry)
        except ClipError as error:  # every decoder failure is one: the clip keeps its place, with a reason
            return ClipLatents(empty, reason=" ".join(str(error).split()))
        arrays = empty | latents | conditions
        try:
            return ClipLatents(arrays, cached_bytes=self.cache.write(sample, geometry, latents))
        except CacheWriteError as error:
            return ClipLatents(arrays, cache_error=str(error))

    def fill_cache(self, sample_id: int) -> ClipLatents:
        """Encodes one sample into the cache, unless its file is there: that one is not read."""
        sample, geometry = self.plan.sample(sample_id), self.geometry_of(sample_id)
        if not sample.forgotten and self.cache.holds(sample, geometry):
            return ClipLatents({}, was_cached=True)
        return self.encode(sample_id, geometry)

    def clip_bytes(self, geometry: Geometry) -> int:
        """Of one clip in a row."""
        return sum(array.nbytes for array in self._empty(geometry).values())

    def geometry_of(self, sample_id: int) -> Geometry:
        return self.of_bucket[self.plan.bucket_of[sample_id]]

    def _text_and_actions(self, sample: Sample, geometry: Geometry) -> dict[str, np.ndarray]:
        model = self.cfg.model
        text_N = encode_texts(
            sample.caption,
            sample.transcript,
            caption_bytes=model.text_tokens,
            speech_bytes=model.speech_bytes,
        ).numpy()
        actions_FA, valid_F = self._no_actions(geometry)
        if sample.actions:
            given_FA = np.asarray(json.loads(sample.actions), dtype=np.float32)[: geometry.num_frames]
            actions_FA[: given_FA.shape[0], : given_FA.shape[1]] = given_FA
            valid_F[: given_FA.shape[0]] = True
        return {"text": text_N.astype(np.int16), "actions": actions_FA, "actions_valid": valid_F}

    def _no_actions(self, geometry: Geometry) -> tuple[np.ndarray, np.ndarray]:
        actions_FA = np.zeros((geometry.num_frames, self.cfg.model.action_dim), dtype=np.float32)
        return actions_FA, np.zeros(geometry.num_frames, dtype=bool)

    def _empty(self, geometry: Geometry) -> dict[str, np.ndarray]:
        actions_FA, actions_valid_F = self._no_actions(geometry)
        text_N = np.zeros(self.cfg.model.text_tokens + self.cfg.model.speech_bytes, dtype=np.int16)
        conditions = {"text": text_N, "actions": actions_FA, "actions_valid": actions_valid_F}
        return self.encoder.empty(geometry) | conditions

    def _geometry(self, clip_s: float, size: tuple[int, int]) -> Geometry:
        return Geometry.of(clip_s, size, self.cfg.data, self.video.spec, self.audio.spec)


def to_latent_batch(row: Row) -> LatentBatch:
    """A row of `EncodeBatch` as float32 tensors, targets as float16. Whatever is valid may carry loss.

    targets: by name, and under NAME_valid which of their latent steps [B, T] are there.
    """

    def modality(name: str) -> ModalityLatents:
        valid_BT = _tensor(row[f"{name}_valid"], torch.bool)
        return ModalityLatents(
            latents=_tensor(row[name], torch.float32),
            valid_BT=valid_BT,
            loss_mask_BT=valid_BT.clone(),
            time_s_T2=_tensor(row[f"{name}_time_s"], torch.float32),
        )

    return LatentBatch(
        epoch=int(row["epoch"]),
        batch_id=int(row["batch_id"]),
        sample_ids_B=_tensor(row["sample_ids"], torch.int64),
        video=modality("video"),
        audio=modality("audio"),
        text_BN=_tensor(row["text"], torch.int64),
        actions_BFA=_tensor(row["actions"], torch.float32),
        actions_valid_BF=_tensor(row["actions_valid"], torch.bool),
        is_still=bool(row["is_still"]),
        reasons={int(i): reason for i, reason in json.loads(str(row["reasons"])).items()},
        targets={
            name.removeprefix(PREFIX): _tensor(
                array, torch.bool if name.endswith("_valid") else torch.float16
            )
            for name, array in row.items()
            if name.startswith(PREFIX)
        },
    )


def _tensor(array: np.ndarray, dtype: torch.dtype) -> torch.Tensor:
    return torch.tensor(array, dtype=dtype)  # a copy: the object store's memory is read-only


def _spans_s(spec: CodecSpec, num_steps: int) -> np.ndarray:
    return np.array([spec.span_s(step) for step in range(num_steps)], dtype=np.float32)
