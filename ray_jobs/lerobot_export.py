"""Clips with actions -> a LeRobot v3.0 data set, a few seconds at a time."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from avtok.decode import ClipError, MediaInfo, decode_clip, probe
from ray_jobs.actions import frames_shown, resampled
from ray_jobs.collect import SIMULATOR_FILE
from ray_jobs.errors import UserError
from ray_jobs.lerobot_files import UNNAMED_TASK, Limits
from ray_jobs.lerobot_writer import ACTION, STATE, LeRobotWriter, Shape
from ray_jobs.render import MANIFEST_FILE, TRUTH_FILE
from ray_jobs.sources import SourceRow, read_sources, with_actions

# T frames, A action width, S state width.

PIECE_S = 4.0  # decoded and encoded at a time
# An .mp4 holds AAC of these rates only. The sound of a frame is a whole number of samples.
AAC_RATES = (7350, 8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000, 64000, 88200, 96000)
NAMED = 3  # clips that a message names
Progress = Callable[[str, int, int], None]  # (stage, done, total)


@dataclass(frozen=True, eq=False)
class Episode:
    """One clip that can be exported, its actions and its media. state_TS: one row per frame, or None."""

    row: SourceRow
    info: MediaInfo
    sample_rate: int
    state_TS: np.ndarray | None

    @property
    def duration_s(self) -> float:
        end_s = self.info.duration_s if self.row.end_s is None else min(self.row.end_s, self.info.duration_s)
        return end_s - self.row.start_s

    def actions_TA(self, fps: int) -> np.ndarray:
        given_FA = np.array(json.loads(self.row.actions))
        return resampled(given_FA, clip_hz=self.info.fps, grid_hz=fps, start_s=self.row.start_s)


def export_episodes(
    source: str,
    out: Path,
    *,
    fps: int | None = None,
    limits: Limits | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Write every clip of `source` as an episode into the folder `out`; return what was written and left out.

    source: what `worldmodel render` or `collect` wrote, or any manifest with actions. out appears when all is
    written. A clip that cannot be decoded is left out, one that breaks off ends there; both with a reason.
    UserError for a source without actions, clips that are not of one kind, and an `out` that holds something.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"--out {out}: holds something already; name a new or an empty folder")
    if fps is not None and fps < 1:
        raise UserError(f"--fps must be at least 1, got {fps}")
    manifest = _manifest_of(source)
    rows, left_out = _rows_with_actions(manifest)
    episodes = list(_probed(rows, _states(manifest), left_out, progress))
    if not episodes:
        said = "; ".join(f"{row['uri']}: {row['reason']}" for row in left_out[:NAMED])
        raise UserError(f"{manifest}: none of its {len(left_out)} clips can be used: {said}")
    shape = _shape(episodes, fps, _action_names(manifest))

    part = out.with_name(f"{out.name}.part")  # left by an export that was killed, it is no data set
    shutil.rmtree(part, ignore_errors=True)
    writer = LeRobotWriter(part, shape, limits)
    try:
        for done, episode in enumerate(episodes, start=1):
            if reason := _write_episode(writer, episode):
                left_out.append({"uri": episode.row.uri, "reason": reason})
            if progress is not None:
                progress("writing episodes", done, len(episodes))
        if not writer.num_episodes:
            raise UserError(f"{manifest}: no clip can be decoded, the first: {left_out[0]['reason']}")
        writer.finish()
        if out.exists():
            out.rmdir()
        part.rename(out)
    finally:
        writer.close()
        shutil.rmtree(part, ignore_errors=True)
    return {
        "out": str(out),
        "episodes": writer.num_episodes,
        "frames": writer.num_frames,
        "fps": shape.fps,
        "sample_rate": shape.sample_rate,
        "tasks": len(writer.tasks),
        "left_out": left_out,
    }


def _manifest_of(source: str) -> Path:
    path = Path(source)
    if not path.is_dir():
        return path
    if (path / MANIFEST_FILE).is_file():
        return path / MANIFEST_FILE
    found = "is empty" if not any(path.iterdir()) else f"has no {MANIFEST_FILE}, so no actions"
    raise UserError(
        f"{source}: {found}; give a folder that `worldmodel render pusher` or `worldmodel collect` "
        "wrote, or a manifest with a column `actions`"
    )


def _rows_with_actions(manifest: Path) -> tuple[list[SourceRow], list[dict[str, str]]]:
    found = read_sources([str(manifest)])
    without = [row.uri for row in found.rows if not row.actions]
    if without:
        which = "no clip" if len(without) == len(found.rows) else f"{len(without)} of {len(found.rows)} clips"
        said = f"{which} has" if which == "no clip" else f"{which}, such as {_named(without)}, have no"
        raise UserError(
            f"{manifest}: {said} actions; fill its column `actions` with a row of numbers per frame, "
            "as `worldmodel render pusher` does"
        )
    rows, left_out = [], list(found.rejected)
    for row in found.rows:
        try:
            rows.append(with_actions(row))
        except ClipError as error:
            left_out.append({"uri": row.uri, "reason": str(error)})
    widths = {len(json.loads(row.actions)[0]) for row in rows}
    if len(widths) > 1:
        raise UserError(f"{manifest}: actions are {sorted(widths)} wide; export clips of one width at a time")
    return rows, left_out


def _probed(
    rows: list[SourceRow],
    states: dict[str, np.ndarray],
    left_out: list[dict[str, str]],
    progress: Progress | None,
) -> Iterator[Episode]:
    for done, row in enumerate(rows, start=1):
        try:
            info = probe(row.uri)
            sound = probe(row.audio_uri) if row.audio_uri else info
        except ClipError as error:
            left_out.append({"uri": row.uri, "reason": " ".join(str(error).split())})
            continue
        if not info.has_video or info.duration_s <= row.start_s:
            left_out.append({"uri": row.uri, "reason": "no moving picture from start_s on"})
            continue
        yield Episode(row, info, sound.sample_rate, states.get(Path(row.uri).name))
        if progress is not None:
            progress("index", done, len(rows))


def _shape(episodes: list[Episode], fps: int | None, action_names: tuple[str, ...]) -> Shape:
    """What all have in common. UserError names who differs."""
    rates = {episode.row.uri: _whole_rate(episode) for episode in episodes}
    if fps is None:
        rate = _common(rates, "frames/s", "give --fps to put them on one grid")
        if rate != round(rate):
            raise UserError(f"the clips have {rate:g} frames/s, and LeRobot takes whole numbers; give --fps")
        fps = round(rate)
    sizes = {e.row.uri: (e.info.height // 2 * 2, e.info.width // 2 * 2) for e in episodes}
    size = _common(sizes, "pixels (height, width)", "export each size apart")
    width = len(json.loads(episodes[0].row.actions)[0])
    has_state = all(episode.state_TS is not None for episode in episodes)
    names = ("x", "y") if has_state and width == 2 else tuple(f"action_{i}" for i in range(width))
    return Shape(
        fps=fps,
        size=size,
        sample_rate=_sample_rate(max(episode.sample_rate for episode in episodes), fps),
        action_names=action_names if len(action_names) == width else names,
        state_names=("x", "y") if has_state else (),
    )


def _whole_rate(episode: Episode) -> float:
    """A measured rate that over the clip is the same as a whole number, is that number."""
    rate = episode.info.fps
    return float(round(rate)) if abs(rate - round(rate)) * episode.info.duration_s < 0.5 else round(rate, 2)


def _common(of: dict[str, Any], what: str, advice: str) -> Any:
    counted = Counter(of.values()).most_common()
    if len(counted) == 1:
        return counted[0][0]
    said = []
    for value, count in counted[:NAMED]:
        named = _named([uri for uri, own in of.items() if own == value])
        said.append(f"{value} in {count} clips ({named})")
    raise UserError(f"the clips differ in {what}: {', '.join(said)}; {advice}")


def _sample_rate(rate: int, fps: int) -> int:
    """The least rate of AAC, if possible not below `rate`, that has a whole number of samples a frame."""
    if not rate:
        return 0
    whole = [aac for aac in AAC_RATES if aac % fps == 0]
    if not whole:
        raise UserError(
            f"{fps} frames/s: no sample rate of AAC is a multiple of it; give --fps, such as 16, 25 or 30"
        )
    return min((aac for aac in whole if aac >= rate), default=whole[-1])


def _write_episode(writer: LeRobotWriter, episode: Episode) -> str:
    """Piece by piece. Returns why it is not whole, else nothing."""
    shape, row = writer.shape, episode.row
    actions_TA = episode.actions_TA(shape.fps)
    num_frames = min(round(episode.duration_s * shape.fps), len(actions_TA))
    vectors = {ACTION: actions_TA}
    if shape.state_names and episode.state_TS is not None:
        vectors[STATE] = _state_at_frames(episode, shape.fps, num_frames)
        num_frames = min(num_frames, len(vectors[STATE]))
    piece, done, reason = round(PIECE_S * shape.fps), 0, ""
    while done < num_frames and not reason:
        stop = min(done + piece, num_frames)
        try:
            video_THWC, audio_N = _decoded(episode, shape, done, stop)
        except ClipError as error:
            reason = " ".join(str(error).split())
            break
        if not done:
            writer.begin(num_frames)
        own = {name: values[done:stop] for name, values in vectors.items()}
        writer.add(video_THWC, audio_N, own, row.caption or UNNAMED_TASK)
        done = stop
    if done:
        writer.end()
    return f"its frames from {done} on: {reason}" if done and reason else reason


def _decoded(episode: Episode, shape: Shape, start: int, stop: int) -> tuple[np.ndarray, np.ndarray | None]:
    """Frames [start, stop) of an episode and their sound; silence where this clip has none and others do."""
    row = episode.row
    clip = decode_clip(
        row.uri,
        start_s=row.start_s + start / shape.fps,
        end_s=row.start_s + stop / shape.fps,
        fps=shape.fps,
        size=shape.size,
        sample_rate=shape.sample_rate or AAC_RATES[0],
        audio_uri=row.audio_uri or None,
    )
    if clip.video_THWC is None:
        raise ClipError(f"{row.uri}: its picture could not be decoded")
    if not shape.sample_rate:
        return clip.video_THWC, None
    silence_N = np.zeros((stop - start) * shape.samples_per_frame, np.float32)
    return clip.video_THWC, silence_N if clip.audio_N is None else clip.audio_N


def _state_at_frames(episode: Episode, fps: int, num_frames: int) -> np.ndarray:
    assert episode.state_TS is not None
    first = round(episode.row.start_s * episode.info.fps)
    own_TS = episode.state_TS[first:]
    shown_T = frames_shown(len(own_TS), clip_hz=episode.info.fps, grid_hz=fps, start_s=episode.row.start_s)
    return own_TS[shown_T[shown_T < len(own_TS)][:num_frames]]


def _states(manifest: Path) -> dict[str, np.ndarray]:
    """clip -> place of the pusher at each frame, [T, 2], where there is truth beside the manifest."""
    truth = manifest.parent / TRUTH_FILE
    if not truth.is_file() or "pusher" not in pq.read_schema(truth).names:
        return {}
    table = pq.read_table(truth, columns=["clip", "pusher"])
    pairs = zip(table["clip"].to_pylist(), table["pusher"].to_pylist(), strict=True)
    return {clip: np.array(pusher) for clip, pusher in pairs if pusher is not None}


def _action_names(manifest: Path) -> tuple[str, ...]:
    about = manifest.parent / SIMULATOR_FILE
    return tuple(json.loads(about.read_text("utf-8"))["actions"]) if about.is_file() else ()


def _named(uris: list[str]) -> str:
    more = f" and {len(uris) - NAMED} more" if len(uris) > NAMED else ""
    return ", ".join(Path(uri).name for uri in uris[:NAMED]) + more
