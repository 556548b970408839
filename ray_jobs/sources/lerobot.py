"""LeRobot v3 data sets: an episode of one camera is a row, a span of the video file that it lies in."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ray_jobs.errors import UserError
from ray_jobs.lerobot_files import UNNAMED_TASK
from ray_jobs.sources.actions import EPISODE
from ray_jobs.sources.rows import Notes, RowError, SourceRow, row_of
from ray_jobs.stores import exists, list_files, open_input, read_bytes

INFO = "meta/info.json"
ACTION = "action"


def is_lerobot(folder: str) -> bool:
    return exists(f"{folder}/{INFO}")


def lerobot_rows(root: str, camera: str, notes: Notes) -> Iterator[SourceRow]:
    """camera: name of a video feature; empty: the first. UserError for another version, or no such video."""
    info = _info(root)
    camera = _camera(root, info["features"], camera, notes)
    has_actions = ACTION in info["features"]
    files = [uri for uri in list_files(f"{root}/meta/episodes") if uri.endswith(".parquet")]
    if not files:
        raise UserError(f"{root}: meta/episodes holds no Parquet file")
    for episode in _episodes(files, camera):
        index = episode.get("episode_index")
        try:
            yield _row(root, info, episode, camera, has_actions=has_actions)
        except (RowError, KeyError, TypeError, ValueError, IndexError) as error:
            reason = f"does not say {error}" if isinstance(error, KeyError) else error
            notes.reject(f"{root}#episode-{index}", f"the episode cannot be used: {reason}")


def _row(
    root: str, info: dict[str, Any], episode: dict[str, Any], camera: str, *, has_actions: bool
) -> SourceRow:
    index = int(episode["episode_index"])
    tasks = [task for task in episode.get("tasks") or [] if task != UNNAMED_TASK]
    fields: dict[str, Any] = {
        "caption": ". ".join(tasks),
        "start_s": episode[f"videos/{camera}/from_timestamp"],
        "end_s": episode[f"videos/{camera}/to_timestamp"],
        # episodes share a file, and yet may stand on different sides of a split
        "group": f"{root.rpartition('/')[2]}/episode-{index}",
        "id": f"episode-{index}",
    }
    if has_actions:
        fields["actions"] = f"{root}/{_path(info['data_path'], episode, 'data')}"
    video = f"{root}/{_path(info['video_path'], episode, f'videos/{camera}', video_key=camera)}"
    row = row_of(fields, root, uri=video)
    return replace(row, actions=f"{row.actions}{EPISODE}{index}") if has_actions else row


def _path(pattern: str, episode: dict[str, Any], kind: str, **names: str) -> str:
    return pattern.format(
        chunk_index=int(episode[f"{kind}/chunk_index"]),
        file_index=int(episode[f"{kind}/file_index"]),
        **names,
    )


def _episodes(files: list[str], camera: str) -> Iterator[dict[str, Any]]:
    places = [f"videos/{camera}/{name}" for name in ("chunk_index", "file_index")]
    spans = [f"videos/{camera}/{name}" for name in ("from_timestamp", "to_timestamp")]
    wanted = ["episode_index", "tasks", "data/chunk_index", "data/file_index", *places, *spans]
    for uri in files:
        try:
            with open_input(uri) as file:
                table = pq.ParquetFile(file)
                columns = [name for name in wanted if name in table.schema_arrow.names]
                for batch in table.iter_batches(columns=columns):
                    yield from batch.to_pylist()
        except (pa.ArrowException, OSError) as error:
            raise UserError(f"{uri}: does not read as Parquet: {' '.join(str(error).split())}") from None


def _info(root: str) -> dict[str, Any]:
    try:
        info = json.loads(read_bytes(f"{root}/{INFO}"))
        version = str(info["codebase_version"])
        problem = [name for name in ("features", "video_path", "data_path") if not info.get(name)]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{root}/{INFO}: is not that of a LeRobot data set: {error!r}") from None
    if not version.startswith("v3."):
        raise UserError(
            f"{root}: is a LeRobot data set of {version}; v3 is read, and LeRobot itself converts it "
            "(lerobot.datasets.v30.convert_dataset_v21_to_v30)"
        )
    if problem:
        raise UserError(f"{root}/{INFO}: lacks {', '.join(problem)}")
    return info


def _camera(root: str, features: dict[str, Any], camera: str, notes: Notes) -> str:
    videos = [name for name, feature in features.items() if feature.get("dtype") == "video"]
    colour = [n for n in videos if not (features[n].get("info") or {}).get("video.is_depth_map")] or videos
    if not videos:
        stills = [name for name, feature in features.items() if feature.get("dtype") == "image"]
        why = f"; {', '.join(stills)}: stored as pictures inside Parquet" if stills else ""
        raise UserError(f"{root}: the LeRobot data set has no video{why}")
    if camera and camera not in videos:
        raise UserError(f"{root}?camera={camera}: no such camera; there is {', '.join(videos)}")
    if not camera and len(colour) > 1:
        notes.warnings.append(
            f"{root}: has {len(colour)} cameras, and {colour[0]} is taken; for another one: "
            f"{root}?camera={colour[1]}"
        )
    return camera or colour[0]
