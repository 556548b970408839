"""A LeRobot v3.0 data set, written episode by episode: Parquet by pyarrow, picture and sound by avtok."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from avtok.mux import AUDIO_BITS_PER_SAMPLE, ClipWriter
from ray_jobs.lerobot_files import (
    DATA_PATH,
    EPISODES_PATH,
    MIB,
    VIDEO_PATH,
    Limits,
    Place,
    Tables,
    vector_column,
)
from ray_jobs.lerobot_stats import Moments, picture_moments

# T frames, H W pixels, N samples, A action width, S state width, P samples of one frame.

VERSION = "v3.0"
PICTURE, SOUND, ACTION, STATE = "observation.images.main", "observation.audio", "action", "observation.state"
COUNTERS = ("frame_index", "episode_index", "index", "task_index")
# The reader looks for a frame within 0.1 ms of a time that is float32: beyond 1024 s of a file, neighbouring
# float32 lie further apart than that.
LONGEST_VIDEO_S = 1000
BUFFERED_EPISODES = 16


@dataclass(frozen=True)
class Shape:
    """What every frame of the data set holds. sample_rate 0: no sound, else a multiple of fps."""

    fps: int
    size: tuple[int, int]
    sample_rate: int
    action_names: tuple[str, ...]
    state_names: tuple[str, ...] = ()

    @property
    def samples_per_frame(self) -> int:
        return self.sample_rate // self.fps

    @property
    def vectors(self) -> dict[str, int]:
        """Width of each number feature of a frame."""
        widths = {ACTION: len(self.action_names), STATE: len(self.state_names), SOUND: self.samples_per_frame}
        return {name: width for name, width in widths.items() if width}


class LeRobotWriter:
    """begin, add as often as there are pieces, end: one episode. finish writes what describes the whole."""

    def __init__(self, root: Path, shape: Shape, limits: Limits | None = None) -> None:
        self.root, self.shape, self.limits = root, shape, limits or Limits()
        self.tasks: dict[str, int] = {}
        self.num_episodes = self.num_frames = 0
        self.moments: dict[str, Moments] = {}
        self._data = Tables(root, DATA_PATH, self.limits.files)
        self._episodes = Tables(root, EPISODES_PATH, self.limits.files)
        self._video_place = Place()
        self._video: ClipWriter | None = None
        self._video_bytes = self._video_frames = 0  # of closed files
        self._rows: list[dict[str, Any]] = []

    def begin(self, num_frames: int) -> None:
        """num_frames: about how many are to come; files that could not hold them make room for new ones."""
        row_bytes = 4 * sum(self.shape.vectors.values()) + 4 + 8 * len(COUNTERS)
        self._data.make_room(num_frames * row_bytes, self.limits.data_mib * MIB)
        self._make_video_room(num_frames)
        assert self._video is not None
        self._first_video_frame = self._video.num_frames
        self._parts: dict[str, list[np.ndarray]] = {ACTION: [], STATE: []}
        self._episode: dict[str, Moments] = {}
        self._length, self._task = 0, ""

    def add(
        self, video_THWC: np.ndarray, audio_N: np.ndarray | None, vectors: dict[str, np.ndarray], task: str
    ) -> None:
        """Frames, their sound (P samples each) and, by name, what `Shape.vectors` lists of them."""
        assert self._video is not None
        self._task = task
        task_index = self.tasks.setdefault(task, len(self.tasks))
        self._video.add_picture(video_THWC)
        self._count(PICTURE, picture_moments(video_THWC))
        if audio_N is not None:
            self._video.add_sound(audio_N)
            vectors = vectors | {SOUND: audio_N.reshape(len(video_THWC), self.shape.samples_per_frame)}
            self._count(SOUND, Moments.of(vectors[SOUND]))
        for name in self._parts.keys() & vectors.keys():
            self._parts[name].append(vectors[name])
        frame_T = self._length + np.arange(len(video_THWC))
        columns: dict[str, np.ndarray] = {
            "timestamp": (frame_T / self.shape.fps).astype(np.float32),
            "frame_index": frame_T,
            "episode_index": np.full_like(frame_T, self.num_episodes),
            "index": self.num_frames + frame_T,
            "task_index": np.full_like(frame_T, task_index),
        }
        for name, values_T in columns.items():
            self._count(name, Moments.of(values_T[:, None]))
        arrays = {name: vector_column(vectors[name]) for name in self.shape.vectors}
        self._data.add(pa.table(arrays | {name: pa.array(values_T) for name, values_T in columns.items()}))
        self._length += len(video_THWC)

    def end(self) -> None:
        """The episode is whole."""
        assert self._video is not None
        for name, parts in self._parts.items():
            if parts:
                self._episode[name] = Moments.of(np.concatenate(parts), quantiles=True)
        for name, moments in self._episode.items():
            self.moments[name] = self.moments[name].plus(moments) if name in self.moments else moments
        fps, first = self.shape.fps, self._first_video_frame
        row = {
            "episode_index": self.num_episodes,
            "tasks": [self._task],
            "length": self._length,
            "data/chunk_index": self._data.place.chunk_index,
            "data/file_index": self._data.place.file_index,
            "dataset_from_index": self.num_frames,
            "dataset_to_index": self.num_frames + self._length,
            f"videos/{PICTURE}/chunk_index": self._video_place.chunk_index,
            f"videos/{PICTURE}/file_index": self._video_place.file_index,
            f"videos/{PICTURE}/from_timestamp": first / fps,
            f"videos/{PICTURE}/to_timestamp": (first + self._length) / fps,
        }
        for feature, values in self._stats(self._episode, self._length).items():
            row |= {f"stats/{feature}/{name}": value for name, value in values.items()}
        self._rows.append(row)
        self.num_frames += self._length
        self.num_episodes += 1
        if len(self._rows) == BUFFERED_EPISODES:
            self._write_episodes()

    def finish(self) -> None:
        """Closes all files; info.json comes last."""
        self._write_episodes()
        self._data.close()
        self._episodes.close()
        self.close()
        tasks = pd.DataFrame(
            {"task_index": range(len(self.tasks))}, index=pd.Index(list(self.tasks), name="task")
        )
        tasks.to_parquet(self.root / "meta" / "tasks.parquet")
        stats = self._stats(self.moments, self.num_frames)
        (self.root / "meta" / "stats.json").write_text(json.dumps(stats, indent=4), "utf-8")
        (self.root / "meta" / "info.json").write_text(json.dumps(self._info(), indent=4), "utf-8")

    def close(self) -> None:
        """Ends the video file, also of a data set that is given up."""
        if self._video is not None:
            self._video.close()
            self._video = None

    def _make_video_room(self, num_frames: int) -> None:
        if self._video is not None:
            written, frames = self._video.num_bytes, self._video.num_frames
            per_frame = (self._video_bytes + written) / max(1, self._video_frames + frames)
            fits = written + num_frames * per_frame <= self.limits.video_mib * MIB
            if not frames or (fits and frames + num_frames <= LONGEST_VIDEO_S * self.shape.fps):
                return
            self.close()
            self._video_bytes += written
            self._video_frames += frames
        self._video_place.next(self.limits.files)
        self._video = ClipWriter(
            self._video_path(),
            fps=self.shape.fps,
            size=self.shape.size,
            sample_rate=self.shape.sample_rate or None,
            keyframe_every=max(2, self.shape.fps // 4),  # frames are read at random
        )

    def _video_path(self) -> Path:
        return self._video_place.path(self.root, VIDEO_PATH.replace("{video_key}", PICTURE))

    def _write_episodes(self) -> None:
        if not self._rows:
            return
        self._episodes.make_room(0, self.limits.data_mib * MIB)
        place = self._episodes.place
        where = {"meta/episodes/chunk_index": place.chunk_index, "meta/episodes/file_index": place.file_index}
        self._episodes.add(pa.Table.from_pylist([row | where for row in self._rows]))
        self._episodes.flush()
        self._rows = []

    def _count(self, name: str, moments: Moments) -> None:
        self._episode[name] = self._episode[name].plus(moments) if name in self._episode else moments

    def _stats(self, moments: dict[str, Moments], num_frames: int) -> dict[str, dict[str, Any]]:
        return {
            name: found.listed((3, 1, 1), num_frames) if name == PICTURE else found.listed((-1,))
            for name, found in moments.items()
        }

    def _info(self) -> dict[str, Any]:
        shape = self.shape
        features: dict[str, Any] = {
            PICTURE: {
                "dtype": "video",
                "shape": [*shape.size, 3],
                "names": ["height", "width", "channels"],
                "info": _media_info(shape),
            }
        }
        names = {ACTION: list(shape.action_names), STATE: list(shape.state_names), SOUND: None}
        for name, width in shape.vectors.items():
            features[name] = {"dtype": "float32", "shape": [width], "names": names[name]}
        if SOUND in features:
            features[SOUND]["info"] = {"audio.sample_rate": shape.sample_rate, "audio.channels": 1}
        features["timestamp"] = {"dtype": "float32", "shape": [1], "names": None}
        features |= {name: {"dtype": "int64", "shape": [1], "names": None} for name in COUNTERS}
        return {
            "codebase_version": VERSION,
            "robot_type": None,
            "total_episodes": self.num_episodes,
            "total_frames": self.num_frames,
            "total_tasks": len(self.tasks),
            "chunks_size": self.limits.files,
            "data_files_size_in_mb": self.limits.data_mib,
            "video_files_size_in_mb": self.limits.video_mib,
            "fps": shape.fps,
            "splits": {"train": f"0:{self.num_episodes}"},
            "data_path": DATA_PATH,
            "video_path": VIDEO_PATH,
            "features": features,
        }


def _media_info(shape: Shape) -> dict[str, Any]:
    info: dict[str, Any] = {
        "video.height": shape.size[0],
        "video.width": shape.size[1],
        "video.codec": "h264",
        "video.pix_fmt": "yuv420p",
        "video.is_depth_map": False,
        "video.fps": shape.fps,
        "video.channels": 3,
        "has_audio": bool(shape.sample_rate),
    }
    if shape.sample_rate:
        info |= {
            "audio.channels": 1,
            "audio.codec": "aac",
            "audio.bit_rate": AUDIO_BITS_PER_SAMPLE * shape.sample_rate,
            "audio.sample_rate": shape.sample_rate,
            "audio.channel_layout": "mono",
        }
    return info
