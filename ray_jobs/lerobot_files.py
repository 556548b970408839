"""Where the files of a LeRobot data set lie and when a new one begins."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

# T frames, D values of one frame.

PLACE = "chunk-{chunk_index:03d}/file-{file_index:03d}"
DATA_PATH, EPISODES_PATH = f"data/{PLACE}.parquet", f"meta/episodes/{PLACE}.parquet"
VIDEO_PATH = f"videos/{{video_key}}/{PLACE}.mp4"
MIB = 1 << 20
BUFFERED_BYTES = 16 * MIB
UNNAMED_TASK = "unnamed"  # of an episode without a caption


@dataclass(frozen=True)
class Limits:
    """When a new file begins, in MiB, and how many files a folder holds. An episode lies within one file."""

    data_mib: int = 100
    video_mib: int = 200
    files: int = 1000


@dataclass
class Place:
    """Which file is being written."""

    chunk_index: int = 0
    file_index: int = -1

    def next(self, files: int) -> None:
        self.file_index += 1
        if self.file_index == files:
            self.chunk_index, self.file_index = self.chunk_index + 1, 0

    def path(self, root: Path, pattern: str) -> Path:
        path = root / pattern.format(chunk_index=self.chunk_index, file_index=self.file_index)
        path.parent.mkdir(parents=True, exist_ok=True)
        return path


class Tables:
    """Parquet files of one kind, one after the other. Rows wait until they make a row group worth writing."""

    def __init__(self, root: Path, pattern: str, files: int) -> None:
        self.root, self.pattern, self.files = root, pattern, files
        self.place = Place()
        self._writer: pq.ParquetWriter | None = None
        self._waiting: list[pa.Table] = []
        self._num_bytes = 0  # before compression, as LeRobot counts; a running file begins at 0

    def make_room(self, num_bytes: int, limit: int) -> None:
        """A new file, where the running one cannot hold so many bytes more."""
        if self.place.file_index < 0 or (self._num_bytes and self._num_bytes + num_bytes > limit):
            self.close()
            self.place.next(self.files)
            self._num_bytes = 0

    def add(self, table: pa.Table) -> None:
        self._waiting.append(table)
        self._num_bytes += table.nbytes
        if sum(waiting.nbytes for waiting in self._waiting) > BUFFERED_BYTES:
            self.flush()

    def flush(self) -> None:
        if not self._waiting:
            return
        table = pa.concat_tables(self._waiting)
        if self._writer is None:
            self._writer = pq.ParquetWriter(self.place.path(self.root, self.pattern), table.schema)
        self._writer.write_table(table)
        self._waiting = []

    def close(self) -> None:
        self.flush()
        if self._writer is not None:
            self._writer.close()
            self._writer = None


def vector_column(values_TD: np.ndarray) -> pa.Array:
    """Lists of fixed length; LeRobot reads a feature of one value as plain numbers."""
    flat = pa.array(np.ascontiguousarray(values_TD, dtype=np.float32).ravel())
    width = values_TD.shape[1]
    return flat if width == 1 else pa.FixedSizeListArray.from_arrays(flat, width)
