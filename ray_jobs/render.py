"""Embedded world -> .mp4 clips, exact truth and a manifest, as Ray tasks. The caller has initialised Ray."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import ray

from ray_jobs.cluster import tasks_at_once
from ray_jobs.errors import UserError
from worldmodel.worlds.catalog import WorldSettings, make_episode, world_settings
from worldmodel.worlds.talker import TalkerSettings, word_events
from worldmodel.worlds.truth import Truth, write_truth

CLIPS_PER_TASK = 8
TRUTH_FILE = "truth.parquet"
MANIFEST_FILE = "manifest.jsonl"


def render(
    world: str,
    *,
    clips: int,
    out: str,
    seed: int,
    duration_s: float,
    split: str = "in",
    progress: Callable[[int, int], None] | None = None,
) -> str:
    """Render `clips` clips into the folder `out`, which every worker must reach; return the manifest's path.

    Writes clip_00000.mp4 and on, truth.parquet (the same arguments give the same bytes) and manifest.jsonl,
    which comes last: a folder with a manifest is complete. progress(done, clips) is called as tasks end.
    UserError for bad arguments.
    """
    folder = Path(out).resolve()
    check_render(world, clips=clips, out=folder, duration_s=duration_s, split=split)
    folder.mkdir(parents=True, exist_ok=True)
    manifest = folder / MANIFEST_FILE
    manifest.unlink(missing_ok=True)

    starts = list(range(0, clips, CLIPS_PER_TASK))
    most_in_flight = tasks_at_once()
    in_flight: list[ray.ObjectRef] = []
    truths: list[Truth] = []
    while starts or in_flight:
        while starts and len(in_flight) < most_in_flight:
            start = starts.pop(0)
            stop = min(start + CLIPS_PER_TASK, clips)
            in_flight.append(_render_clips.remote(world, start, stop, str(folder), seed, duration_s, split))
        done, in_flight = ray.wait(in_flight, num_returns=1)
        truths += ray.get(done[0])
        if progress is not None:
            progress(len(truths), clips)

    truths.sort(key=lambda truth: truth.clip)
    write_truth(folder / TRUTH_FILE, truths)
    manifest.write_text("".join(json.dumps(_row(truth)) + "\n" for truth in truths), encoding="utf-8")
    return str(manifest)


def _row(truth: Truth) -> dict[str, Any]:
    row: dict[str, Any] = {"video": truth.clip, "caption": truth.caption}
    if truth.voice:
        row |= {"transcript": truth.transcript, "speech": word_events(truth)}
    if truth.actions_T2 is not None:
        row["actions"] = truth.actions_T2.round(6).tolist()
    return row


def settings_of(world: str, split: str = "in") -> WorldSettings:
    """UserError for a name that is not there."""
    try:
        return world_settings(world, split)
    except ValueError as error:
        raise UserError(str(error)) from None


def check_render(world: str, *, clips: int, out: Path, duration_s: float, split: str = "in") -> None:
    """UserError for arguments that cannot be rendered; needs no Ray."""
    settings = settings_of(world, split)
    if isinstance(settings, TalkerSettings) and find_spec("espeakng_loader") is None:
        raise UserError("world talker needs espeak-ng: pip install 'worldmodel[speech]'")
    if clips < 1:
        raise UserError(f"--clips must be at least 1, got {clips}")
    if round(duration_s * settings.fps) < 1:
        raise UserError(f"a clip of {duration_s} s has no frame at {settings.fps} fps; use more seconds")
    ours = {clip_name(index) for index in range(clips)}
    others = [path.name for path in out.glob("clip_*.mp4") if path.name not in ours]
    if others:  # they would be taken for clips of this render by whoever indexes the folder
        raise UserError(f"{out} holds {len(others)} other clips, such as {min(others)}; use an empty folder")


def clip_name(index: int) -> str:
    return f"clip_{index:05d}.mp4"


def clip_seed(seed: int, index: int) -> int:
    """Seed of one clip: independent of how many are rendered, and of the seeds of its neighbours."""
    return int(np.random.SeedSequence((seed, index)).generate_state(1, np.uint32)[0])


@ray.remote(num_cpus=1)
def _render_clips(
    world: str, start: int, stop: int, out: str, seed: int, duration_s: float, split: str
) -> list[Truth]:
    return [
        render_clip(world, index, out=out, seed=seed, duration_s=duration_s, split=split)
        for index in range(start, stop)
    ]


def render_clip(
    world: str, index: int, *, out: str, seed: int, duration_s: float, split: str = "in"
) -> Truth:
    """Simulate and write one clip in this process; return its truth, which names the file."""
    from avtok.mux import write_clip

    settings = world_settings(world, split)
    episode = make_episode(settings, seed=clip_seed(seed, index), duration_s=duration_s)
    name = clip_name(index)
    write_clip(
        Path(out) / name,
        episode.video_THWC,
        episode.audio_N,
        fps=settings.fps,
        sample_rate=settings.sample_rate,
    )
    return replace(episode.truth, clip=name)
