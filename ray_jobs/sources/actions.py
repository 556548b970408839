"""Actions that a row only names: a file of them, a member of a tar, the frames of a LeRobot episode."""

# pyarrow makes the functions of pyarrow.compute when it is imported
# pyright: reportAttributeAccessIssue=false

from __future__ import annotations

import io
import json
import zipfile
from dataclasses import replace
from functools import lru_cache
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ray_jobs.sources.rows import RowError, SourceRow, checked_actions, suffix_of
from ray_jobs.stores import content_key, open_input, read_bytes, size_of

# F video frames, A action width.

NAMES = ("actions", "action")
MAX_BYTES = 64 << 20  # of one clip's actions
EPISODE = "#episode="  # FILE.parquet#episode=INDEX: the rows of one episode, in order of their frames


def with_actions(row: SourceRow) -> SourceRow:
    """The row with its actions as JSON. RowError or StoreError where they cannot be read."""
    if not row.actions or row.actions.startswith("["):
        return row
    return replace(row, actions=read_actions(row.actions))


def read_actions(uri: str) -> str:
    """JSON of F rows of A numbers."""
    try:
        return _as_json(_array(uri))
    except (ValueError, MemoryError, EOFError, OSError, zipfile.BadZipFile, pa.ArrowException) as error:
        raise RowError(f"{uri}: does not read as actions: {' '.join(str(error).split())}") from None


def _array(uri: str) -> Any:
    table_uri, is_episode, episode = uri.partition(EPISODE)
    if is_episode:
        return _episode(_frames(table_uri, content_key(table_uri)), int(episode))
    if (num_bytes := size_of(uri)) > MAX_BYTES:
        raise RowError(f"{uri}: is {num_bytes} bytes; the actions of a clip are at most {MAX_BYTES}")
    raw, suffix = io.BytesIO(read_bytes(uri)), suffix_of(uri)
    if suffix == ".npy":
        return np.load(raw, allow_pickle=False)
    if suffix == ".npz":
        return _named_array(uri, raw)
    if suffix == ".parquet":
        return _column(uri, pq.read_table(raw))
    told = json.loads(raw.getvalue())
    return told.get("actions", told) if isinstance(told, dict) else told


def _named_array(uri: str, raw: io.BytesIO) -> np.ndarray:
    """The array called actions, or the only one."""
    with zipfile.ZipFile(raw) as archive:
        if (num_bytes := sum(member.file_size for member in archive.infolist())) > MAX_BYTES:
            raise RowError(f"{uri}: holds {num_bytes} bytes; the actions of a clip are at most {MAX_BYTES}")
    with np.load(raw, allow_pickle=False) as arrays:
        name = next((n for n in NAMES if n in arrays.files), None)
        if name is None and len(arrays.files) == 1:
            name = arrays.files[0]
        if name is None:
            raise RowError(f"{uri}: no array is named actions; it holds {', '.join(arrays.files) or 'none'}")
        return arrays[name]


def _column(uri: str, table: pa.Table) -> Any:
    name = next((n for n in NAMES if n in table.column_names), None)
    if name is None:
        raise RowError(f"{uri}: no column is named actions; it has {', '.join(table.column_names)}")
    return _as_rows(table[name])


@lru_cache(maxsize=2)  # episodes that follow each other lie in one file
def _frames(uri: str, key: str) -> pa.Table:
    """key: of the file's content, so that another one is read anew."""
    with open_input(uri) as file:
        return pq.read_table(file, columns=["episode_index", "frame_index", "action"])


def _episode(frames: pa.Table, index: int) -> Any:
    own = frames.filter(pc.equal(frames["episode_index"], index))
    if not own.num_rows:
        raise ValueError(f"holds no frames of episode {index}")
    return _as_rows(own.take(pc.sort_indices(own, sort_keys=[("frame_index", "ascending")]))["action"])


def _as_rows(column: pa.ChunkedArray) -> Any:
    is_list = pa.types.is_list(column.type) or pa.types.is_fixed_size_list(column.type)
    is_float32 = column.type == pa.float32() or (is_list and column.type.value_type == pa.float32())
    rows = column.to_pylist() if is_list else [[value] for value in column.to_pylist()]
    return np.array(rows, np.float32) if is_float32 and len({len(row) for row in rows}) == 1 else rows


def _as_json(given: Any) -> str:
    if not isinstance(given, np.ndarray):
        return checked_actions(given)
    actions_FA = given[:, None] if given.ndim == 1 else given
    if actions_FA.ndim != 2 or not actions_FA.size or actions_FA.dtype.kind not in "fiub":
        raise RowError(
            "actions must be F rows (one per frame) of A numbers, "
            f"got shape {list(given.shape)} of {given.dtype}"
        )
    if actions_FA.dtype.kind == "b":
        actions_FA = actions_FA.astype(np.uint8)
    # a float32 in its own few digits: 0.1, not 0.10000000149011612
    return checked_actions([[float(str(value)) for value in row] for row in actions_FA])
