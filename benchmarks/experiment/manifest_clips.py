"""Latents of a manifest's clips in memory, for arms that are compared on clips of one's own."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from ray_jobs.errors import UserError
from ray_jobs.index import index_sources
from ray_jobs.plan import make_plan
from ray_jobs.stages import EncodeBatch
from worldmodel.config import RunConfig
from worldmodel.worlds.clips import WorldClips

CLIPS, HELD_OUT = "clips.npz", "held_out.npz"


def prepare_manifest(manifest: str, cfg: RunConfig, held_out: int, out: Path) -> Path:
    """The folder below `out` with clips.npz and held_out.npz, clips of cfg.data in the order of their plan.

    Its name is a hash of what the manifest and the config say, so it is made once. Clips that cannot be
    decoded or lack picture or sound somewhere are left out. UserError when too few remain.
    """
    out.mkdir(parents=True, exist_ok=True)
    index_sources([manifest], out=str(out / "manifest.parquet"))
    rows = pq.read_table(out / "manifest.parquet").to_pylist()
    asked = [rows, cfg.data.model_dump(mode="json"), cfg.codec.model_dump(mode="json"), held_out]
    folder = out / hashlib.sha256(json.dumps(asked, default=str).encode()).hexdigest()[:16]
    if all((folder / name).exists() for name in (CLIPS, HELD_OUT)):
        return folder
    plan = make_plan(str(out / "manifest.parquet"), cfg)
    encode = EncodeBatch(plan, cfg)
    held, trained = _clips(encode, plan.held_out_ids), _clips(encode, np.arange(plan.num_train))
    if len(held) < held_out or len(trained) < cfg.data.batch_clips:
        raise UserError(
            f"{manifest}: of the clips with picture and sound throughout {len(held)} can be held out and "
            f"{len(trained)} trained on, {held_out} and {cfg.data.batch_clips} are needed; give more files"
        )
    folder.mkdir(exist_ok=True)
    for name, clips in ((CLIPS, trained), (HELD_OUT, held[:held_out])):
        partial = folder / f"partial-{name}"
        np.savez(partial, **asdict(_stacked(clips)))
        partial.replace(folder / name)
    return folder


def clips_of_manifest(folder: Path) -> tuple[WorldClips, WorldClips]:
    """(trained on, held out), as prepared."""
    return _load(folder / CLIPS), _load(folder / HELD_OUT)


def _load(path: Path) -> WorldClips:
    with np.load(path) as stored:
        return WorldClips(*(stored[name] for name in WorldClips.__annotations__))


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
