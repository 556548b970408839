"""Columns of indexed manifests, one at a time: the text of a million rows need not lie in memory together."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ray_jobs.errors import UserError
from ray_jobs.manifest_table import MANIFEST_SCHEMA

# N rows of all manifests.


class ManifestColumns:
    """The manifests of all sources, as paths or open files, one after the other. UserError for what is no
    manifest."""

    def __init__(self, by_source: Mapping[str, str | BinaryIO]) -> None:
        self.by_source = dict(by_source)
        self.files = [_open(path) for path in self.by_source.values()]
        self.counts = [file.metadata.num_rows for file in self.files]

    @property
    def num_rows(self) -> int:
        return sum(self.counts)

    @property
    def source_N(self) -> np.ndarray:
        """Number of the source of each row, int16."""
        return np.repeat(np.arange(len(self.counts), dtype=np.int16), self.counts)

    def __getitem__(self, name: str) -> pa.ChunkedArray:
        kind = MANIFEST_SCHEMA.field(name).type
        chunks = [c.cast(kind) for file in self.files for c in file.read(columns=[name]).column(0).chunks]
        return pa.chunked_array(chunks, kind)

    def numbers(self, name: str) -> Any:
        return self[name].to_numpy()


def _open(path: str | BinaryIO) -> pq.ParquetFile:
    try:
        file = pq.ParquetFile(path)
    except (pa.ArrowInvalid, FileNotFoundError) as error:
        raise UserError(
            f"{path}: not an indexed manifest; run: worldmodel index {path} --out M.parquet"
        ) from error
    if missing := [name for name in MANIFEST_SCHEMA.names if name not in file.schema_arrow.names]:
        raise UserError(
            f"{path}: lacks the columns {', '.join(missing)}; run: worldmodel index {path} --out M.parquet"
        )
    return file
