"""Seconds of audio-video that one core renders in a second: simulated, and written as .mp4.

Prediction for `bounce` (64x64, 16 fps, 16 kHz, clips of 2 s): two thousand pymunk steps of 2.5 us, 3 ms of
drawing and 3 ms of sound make 11 ms a clip, 180 s/s; x264 and AAC add 18 ms: 70 s/s with files.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

from avtok.mux import write_clip
from ray_jobs.bench import Measured
from ray_jobs.render import clip_seed, render_clip
from worldmodel.worlds.bounce import simulate
from worldmodel.worlds.settings import WORLDS, world_settings

CLIP_S, ROUNDS, CLIPS_A_ROUND = 2.0, 7, 16


def run(smoke: bool) -> Measured:
    """Rounds of each kind in turn, in this process; CPU time, so that a busy neighbour counts little."""
    rounds, clips = (2, 2) if smoke else (ROUNDS, CLIPS_A_ROUND)
    raw: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory(prefix="worldmodel-bench-render-") as folder:
        for number in range(-1, rounds):  # the first round imports and warms up
            indices = range(number * clips, (number + 1) * clips)
            for name, work in _kinds(folder).items():
                rate = _rate(work, [index % 100_000 for index in indices])
                if number >= 0:
                    raw.setdefault(name, []).append(rate)
    return Measured(
        figures={
            "av_s_per_core_s": median(raw["bounce written"]),
            "simulate_av_s_per_core_s": median(raw["bounce simulated"]),
        },
        raw=raw,
        n=rounds,
        baseline={"encode_only_av_s_per_core_s": median(raw["encode only"])},
        config=f"clip_s: {CLIP_S}\nclips_a_round: {clips}\nsize: [64, 64]\nfps: 16\nsample_rate: 16000\n",
    )


def _kinds(folder: str) -> dict[str, Callable[[int], object]]:
    """What is timed, by name. `encode only` is the limit that files set: no world can be written faster."""
    ready = simulate(world_settings("bounce"), seed=0, duration_s=CLIP_S)
    kinds: dict[str, Callable[[int], object]] = {}
    for world in WORLDS:
        settings = world_settings(world)
        kinds[f"{world} simulated"] = lambda index, settings=settings: simulate(
            settings, seed=clip_seed(0, index), duration_s=CLIP_S
        )
        kinds[f"{world} written"] = lambda index, world=world: render_clip(
            world, index, out=folder, seed=0, duration_s=CLIP_S
        )
    kinds["encode only"] = lambda index: write_clip(
        Path(folder) / "ready.mp4", ready.video_THWC, ready.audio_N, fps=16, sample_rate=16000
    )
    return kinds


def _rate(work: Callable[[int], object], indices: list[int]) -> float:
    began = time.process_time()
    for index in indices:
        work(index)
    return len(indices) * CLIP_S / (time.process_time() - began)
