"""A pretrained autoencoder becomes a codec: probed here with clips of the embedded world."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from ray_jobs.errors import UserError
from worldmodel.worlds.bounce import simulate
from worldmodel.worlds.settings import world_settings

NUM_CLIPS, CLIP_S = 4, 4.0
STRIDE = 8  # clips are cut to this many frames, so that every stride in use fits


def measure_folder(folder: Path, *, fps: int, size_px: int) -> dict[str, Any]:
    """Writes folder/codec.json and returns it as the geometry's fields. UserError for what is no codec."""
    from avtok.measure import measure
    from avtok.pretrained import NotACodec

    try:
        spec = measure(
            folder, fps=fps, size=(size_px, size_px), pictures=_pictures(fps, size_px), sounds=_sounds
        )
    except (NotACodec, OSError, ValueError) as error:
        raise UserError(f"{folder}: {' '.join(str(error).split())}") from None
    return spec.to_dict()


def _pictures(fps: int, size_px: int) -> list[np.ndarray]:
    settings = replace(world_settings("bounce"), fps=fps, size_px=size_px)
    clips = [simulate(settings, seed=seed, duration_s=CLIP_S).video_THWC for seed in range(NUM_CLIPS)]
    return [clip[: len(clip) // STRIDE * STRIDE] for clip in clips]


def _sounds(rate_hz: int) -> list[np.ndarray]:
    settings = replace(world_settings("bounce"), sample_rate=rate_hz)
    return [simulate(settings, seed=seed, duration_s=CLIP_S).audio_N for seed in range(NUM_CLIPS)]
