"""Latents of a manifest's clips in memory, for arms that are compared on clips of one's own."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ray_jobs.index import index_sources
from ray_jobs.plan import make_plan
from ray_jobs.stages import EncodeBatch
from worldmodel.config import RunConfig
from worldmodel.worlds.clips import WorldClips


def clips_of_manifest(
    manifest: str, cfg: RunConfig, held_out: int, out: Path
) -> tuple[WorldClips, WorldClips]:
    """(trained on, held out) clips of cfg.data, in the order of their plan. Those that cannot be decoded or
    lack picture or sound somewhere are left out. ValueError when too few remain."""
    index_sources([manifest], out=str(out / "manifest.parquet"))
    plan = make_plan(str(out / "manifest.parquet"), cfg)
    encode = EncodeBatch(plan, cfg)
    held, trained = _clips(encode, plan.held_out_ids), _clips(encode, np.arange(plan.num_train))
    if len(held) < held_out or len(trained) < cfg.data.batch_clips:
        raise ValueError(
            f"{manifest}: of the clips with picture and sound throughout {len(held)} can be held out and "
            f"{len(trained)} trained on, {held_out} and {cfg.data.batch_clips} are needed; give more files, "
            "or another data.held_out"
        )
    return _stacked(trained), _stacked(held[:held_out])


def _clips(encode: EncodeBatch, ids: np.ndarray) -> list[dict[str, np.ndarray]]:
    """Arrays of each clip as WorldClips has them: all of them count as valid there."""
    shape = encode.clip_bytes(encode.own)
    found = []
    for sample_id in map(int, ids):
        if encode.clip_bytes(encode.geometry_of(sample_id)) != shape:  # a still, or sound alone
            continue
        clip = encode.encode(sample_id)
        if not clip.reason and clip.arrays["video_valid"].all() and clip.arrays["audio_valid"].all():
            text_N = clip.arrays["text"].astype(np.int64)
            found.append({**clip.arrays, "text": text_N, "id": np.array(sample_id)})
    return found


def _stacked(clips: list[dict[str, np.ndarray]]) -> WorldClips:
    names = ("id", "video", "audio", "text", "actions", "actions_valid")
    return WorldClips(*(np.stack([clip[name] for clip in clips]) for name in names))
