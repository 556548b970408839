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
    """(trained on, held out) clips of cfg.data, in the order of their plan; those that cannot be decoded are
    left out. ValueError when too few are held out."""
    index_sources([manifest], out=str(out / "manifest.parquet"))
    plan = make_plan(str(out / "manifest.parquet"), cfg)
    encode = EncodeBatch(plan, cfg)
    held = _clips(encode, plan.held_out_ids[:held_out])
    if len(held) < held_out:
        raise ValueError(
            f"{manifest}: {len(held)} clips can be held out, {held_out} are needed; give more files or "
            "raise data.held_out"
        )
    return _clips(encode, np.arange(plan.num_train)), held


def _clips(encode: EncodeBatch, ids: np.ndarray) -> WorldClips:
    found = [(int(i), clip.arrays) for i in ids if not (clip := encode.encode(int(i))).reason]
    names = ("video", "audio", "text", "actions", "actions_valid")
    return WorldClips(
        np.array([i for i, _ in found]), *(np.stack([arrays[name] for _, arrays in found]) for name in names)
    )
