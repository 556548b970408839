"""The picture codec's recipe: embedded worlds and real clips, cut and sized as training would see them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from avtok.decode import ClipError, decode_clip
from avtok.train import fit_video_codec
from ray_jobs.errors import UserError
from ray_jobs.index import index_sources
from worldmodel.worlds.bounce import simulate
from worldmodel.worlds.settings import WORLDS, world_settings

WORLD_CLIP_S = 4.0
LONGEST_S = 8.0  # of one file, so that a long film does not decide the components


def train_video_codec(
    sources: list[str], *, out: Path, components: int, fps: int, size_px: int, clips: int, seed: int
) -> dict[str, Any]:
    """Fits and saves the codec folder; returns what it was made of. UserError when nothing can be decoded."""
    used: list[str] = []
    pictures = _pictures(sources, out, fps=fps, size_px=size_px, clips=clips, seed=seed, used=used)
    try:
        codec = fit_video_codec(pictures, components=components, fps=fps, name=out.name)
    except ValueError as error:
        raise UserError(f"{', '.join(sources)}: {error}") from None
    codec.save(out)
    return {"codec": str(out), "clips": len(used), "components": components}


def _pictures(
    sources: list[str], out: Path, *, fps: int, size_px: int, clips: int, seed: int, used: list[str]
) -> Iterator[np.ndarray]:
    for world in (s for s in sources if s in WORLDS):
        for number in range(clips):
            used.append(f"{world}:{seed + number}")
            yield simulate(world_settings(world), seed=seed + number, duration_s=WORLD_CLIP_S).video_THWC
    files = [s for s in sources if s not in WORLDS]
    if not files:
        return
    out.mkdir(parents=True, exist_ok=True)
    index_sources(files, out=str(out / "sources.parquet"))
    for row in pq.read_table(out / "sources.parquet").to_pylist():
        frames = 4 * int(min(LONGEST_S, row["duration_s"]) * fps // 4)
        if not row["has_video"] or not frames:
            continue
        start_s = row["start_s"] or 0.0
        try:
            clip = decode_clip(
                row["uri"],
                start_s=start_s,
                end_s=start_s + frames / fps,
                fps=fps,
                size=(size_px, size_px),
                sample_rate=16000,
            )
        except ClipError:
            continue  # the index has let it through, its pictures have not: one clip fewer
        if clip.video_THWC is not None:
            used.append(row["uri"])
            yield clip.video_THWC
