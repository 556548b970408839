"""Planned clips -> latents. Decode and encode are one call: pixels never enter the object store."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from avtok.decode import ClipError, DecodedClip, decode_clip
from avtok.load import load_codec
from avtok.spec import CodecSpec
from ray_jobs.cache import CacheWriteError, LatentCache
from ray_jobs.metrics import RunMetrics
from ray_jobs.passes import PADDING
from ray_jobs.plan import Plan, Sample
from ray_jobs.preflight import check_codecs
from worldmodel.batch import FORGOTTEN, LatentBatch, ModalityLatents
from worldmodel.config import DataConfig, RunConfig
from worldmodel.model.text import encode_texts

# B clips, T latent steps, H W latent rows and columns, C channels, N text tokens, F frames, A action width.

Row = dict[str, Any]


@dataclass(frozen=True)
class Geometry:
    """Shapes of the clips of one bucket."""

    size: tuple[int, int]
    num_frames: int
    video_steps: int
    audio_steps: int

    @classmethod
    def of(
        cls, clip_s: float, size: tuple[int, int], data: DataConfig, video: CodecSpec, audio: CodecSpec
    ) -> Geometry:
        num_frames = round(clip_s * data.fps)
        samples = round(clip_s * data.sample_rate)
        return cls(size, num_frames, video.steps_of_units(num_frames), audio.steps_of_units(samples))


@dataclass(frozen=True)
class ClipLatents:
    """One clip, float16 latents. A clip that could not be used is zeros, nothing valid, and says why."""

    arrays: dict[str, np.ndarray]
    reason: str = ""
    was_cached: bool = False
    cache_error: str = ""


class EncodeBatch:
    """A row that names a planned micro-batch -> a row of fixed-shape arrays. No clip makes it raise."""

    def __init__(self, plan: Plan, cfg: RunConfig) -> None:
        self.plan, self.cfg = plan, cfg
        self.video: Any = load_codec(cfg.codec.video)
        self.audio: Any = load_codec(cfg.codec.audio)
        check_codecs(self.video.spec, self.audio.spec, cfg.data)
        self.own = self._geometry(cfg.data.clip_s, cfg.data.size)
        self.of_bucket = [self._geometry(bucket.clip_s, bucket.size) for bucket in plan.buckets]
        self.metrics = RunMetrics(cfg.name)
        self.cache = LatentCache(cfg.data.cache, (self.video.spec, self.audio.spec), cfg.data)

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
        if geometry is None:
            geometry = self.of_bucket[self.plan.buckets.index(self.plan.bucket(sample_ids_B))]
        clips = [self.encode(int(i), geometry) for i in sample_ids_B]
        stacked = {name: np.stack([clip.arrays[name] for clip in clips]) for name in clips[0].arrays}
        reasons = {int(i): clip.reason for i, clip in zip(sample_ids_B, clips, strict=True) if clip.reason}
        return stacked | {
            "epoch": epoch,
            "batch_id": batch_id,
            "sample_ids": sample_ids_B,
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
        if geometry is None:
            geometry = self.of_bucket[self.plan.bucket_of[sample_id]]
        sample, empty = self.plan.sample(sample_id), self._empty(geometry)
        if sample.forgotten:
            return ClipLatents(empty, reason=FORGOTTEN)
        conditions = self._text_and_actions(sample, geometry)
        cached = self.cache.read(sample, geometry.size)
        if cached is not None:
            self.metrics.add("cached_clips_total")
            return ClipLatents(empty | cached | conditions, was_cached=True)
        try:
            latents = self._decode_and_encode(sample, geometry)
        except ClipError as error:  # every decoder failure is one: the clip keeps its place, with a reason
            return ClipLatents(empty, reason=" ".join(str(error).split()))
        arrays = empty | latents | conditions
        try:
            self.cache.write(sample, geometry.size, latents)
        except CacheWriteError as error:
            return ClipLatents(arrays, cache_error=str(error))
        return ClipLatents(arrays)

    def _decode_and_encode(self, sample: Sample, geometry: Geometry) -> dict[str, np.ndarray]:
        """Latents of the whole steps that hold media; the rest of the clip stays zeros and invalid."""
        data, video, audio = self.cfg.data, self.video.spec, self.audio.spec
        # half a frame of slack: containers round a duration
        whole = video.steps_of_units(int((sample.valid_s + 0.5 / data.fps) * data.fps))
        valid_s = video.units_of_steps(min(whole, geometry.video_steps)) / data.fps
        if not sample.has_video:
            whole = audio.steps_of_units(round(sample.valid_s * data.sample_rate))
            valid_s = audio.units_of_steps(min(whole, geometry.audio_steps)) / data.sample_rate
        if not whole:
            raise ClipError(f"{sample.uri}: {sample.valid_s:.3f} s is shorter than one latent step")
        began = time.perf_counter()
        clip = decode_clip(
            sample.uri,
            start_s=sample.start_s,
            end_s=sample.start_s + valid_s,
            fps=data.fps,
            size=geometry.size,
            sample_rate=data.sample_rate,
            context_frames=video.left_context_units,
            context_samples=audio.left_context_units,
            audio_uri=sample.audio_uri or None,
        )
        decoded = time.perf_counter()
        latents = self._encode_picture(sample, clip, geometry) | self._encode_sound(sample, clip, geometry)
        if not latents:
            raise ClipError(f"{sample.uri}: neither picture nor sound where the manifest promised them")
        self.metrics.encoded(
            media_s=valid_s,
            decode_s=decoded - began,
            encode_s=time.perf_counter() - decoded,
            num_bytes=sum(array.nbytes for array in latents.values()),
        )
        return latents

    def _encode_picture(self, sample: Sample, clip: DecodedClip, geometry: Geometry) -> dict[str, np.ndarray]:
        if not sample.has_video or clip.video_THWC is None:
            return {}
        context_steps = self.video.spec.steps_of_units(clip.context_frames)
        latents_THWC = self.video.encode(clip.video_THWC)[context_steps:]
        return _padded("video", latents_THWC, geometry.video_steps, sample)

    def _encode_sound(self, sample: Sample, clip: DecodedClip, geometry: Geometry) -> dict[str, np.ndarray]:
        # a muted track is no sound: it would teach that the world is silent
        if not sample.has_sound or clip.audio_N is None:
            return {}
        latents_TC = self.audio.encode(clip.audio_N, context_samples=clip.context_samples)
        return _padded("audio", latents_TC, geometry.audio_steps, sample)

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
        return {"text": text_N, "actions": actions_FA, "actions_valid": valid_F}

    def _no_actions(self, geometry: Geometry) -> tuple[np.ndarray, np.ndarray]:
        actions_FA = np.zeros((geometry.num_frames, self.cfg.model.action_dim), dtype=np.float32)
        return actions_FA, np.zeros(geometry.num_frames, dtype=bool)

    def _empty(self, geometry: Geometry) -> dict[str, np.ndarray]:
        actions_FA, actions_valid_F = self._no_actions(geometry)
        video_shape = self.video.spec.latent_shape(geometry.video_steps, geometry.size)
        return {
            "video": np.zeros(video_shape, dtype=np.float16),
            "video_valid": np.zeros(geometry.video_steps, dtype=bool),
            "audio": np.zeros(self.audio.spec.latent_shape(geometry.audio_steps), dtype=np.float16),
            "audio_valid": np.zeros(geometry.audio_steps, dtype=bool),
            "text": np.zeros(self.cfg.model.text_tokens + self.cfg.model.speech_bytes, dtype=np.int64),
            "actions": actions_FA,
            "actions_valid": actions_valid_F,
        }

    def _geometry(self, clip_s: float, size: tuple[int, int]) -> Geometry:
        return Geometry.of(clip_s, size, self.cfg.data, self.video.spec, self.audio.spec)


def to_latent_batch(row: Row) -> LatentBatch:
    """A row of `EncodeBatch` as float32 tensors. Whatever is valid may carry loss."""

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
        reasons={int(i): reason for i, reason in json.loads(str(row["reasons"])).items()},
    )


def _tensor(array: np.ndarray, dtype: torch.dtype) -> torch.Tensor:
    return torch.tensor(array, dtype=dtype)  # a copy: the object store's memory is read-only


def _padded(name: str, latents: torch.Tensor, num_steps: int, sample: Sample) -> dict[str, np.ndarray]:
    if not torch.isfinite(latents).all():
        raise ClipError(f"{sample.uri}: its {name} latents are not finite")
    padded = np.zeros((num_steps, *latents.shape[1:]), dtype=np.float16)
    padded[: len(latents)] = latents.numpy().astype(np.float16)
    return {name: padded, f"{name}_valid": np.arange(num_steps) < len(latents)}


def _spans_s(spec: CodecSpec, num_steps: int) -> np.ndarray:
    return np.array([spec.span_s(step) for step in range(num_steps)])
