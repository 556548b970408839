"""Manifests: CSV, JSON, JSONL and Parquet, read row by row."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ray_jobs.errors import UserError
from ray_jobs.sources.rows import (
    ALIASES,
    KNOWN_FIELDS,
    Notes,
    RowError,
    SourceRow,
    folder_of,
    row_of,
    suffix_of,
)
from ray_jobs.stores import open_input, read_bytes

MANIFEST_SUFFIXES = frozenset({".csv", ".json", ".jsonl", ".ndjson", ".parquet"})
BATCH_ROWS = 1024
MAX_CELL_BYTES = 1 << 30  # of CSV; its own limit is less than a minute of actions
INDEXED = frozenset({"uri", "content_sha256"})  # columns of what `worldmodel index` wrote


def manifest_rows(manifest: str, notes: Notes) -> Iterator[SourceRow]:
    """UserError for a file without rows, or of which no row names media."""
    base, fields, num_records = folder_of(manifest), dict[str, None](), 0
    for where, record in _records(manifest):
        num_records += 1
        if not isinstance(record, dict):
            notes.reject(where, f"not an object of named fields but {record!r:.60}")
            continue
        fields |= dict.fromkeys(record)
        try:
            row = row_of(record, base)
        except RowError as error:
            notes.reject(where, error)
        else:
            yield row
    if not num_records:
        raise UserError(f"{manifest}: the manifest has no rows")
    if fields and not fields.keys() & set(ALIASES["uri"]):
        raise UserError(
            f"{manifest}: no column names the media; it has {', '.join(fields)}; "
            f"use one of {', '.join(ALIASES['uri'])}"
        )
    if not fields.keys() >= INDEXED:
        notes.saw(fields)


def _records(manifest: str) -> Iterator[tuple[str, Any]]:
    """(file:line, record) of a manifest. A JSONL line that does not parse is given as its text."""
    suffix = suffix_of(manifest)
    read = {".parquet": _parquet, ".csv": _csv, ".json": _json}.get(suffix, _json_lines)
    try:
        for line, record in read(manifest):
            yield f"{manifest}:{line}", record
    except (pa.ArrowException, ValueError, csv.Error, OSError) as error:
        said = " ".join(str(error).split())
        raise UserError(f"{manifest}: does not read as {suffix[1:]}: {said}") from error


def _parquet(manifest: str) -> Iterator[tuple[int, Any]]:
    with open_input(manifest) as file:
        table = pq.ParquetFile(file)
        names = table.schema_arrow.names
        known = [name for name in names if name in KNOWN_FIELDS] or names[:1]
        unread = dict.fromkeys(names)
        line = 0
        for batch in table.iter_batches(BATCH_ROWS, columns=known):
            for record in batch.to_pylist():
                line += 1
                yield line, unread | record


def _csv(manifest: str) -> Iterator[tuple[int, Any]]:
    csv.field_size_limit(MAX_CELL_BYTES)
    with _lines(manifest) as lines:
        reader = csv.DictReader(lines)
        for record in reader:
            extra = record.pop(None, None)  # pyright: ignore[reportArgumentType]
            yield reader.line_num, extra if extra else record


def _json(manifest: str) -> Iterator[tuple[int, Any]]:
    records = json.loads(read_bytes(manifest).decode("utf-8-sig"))
    if not isinstance(records, list):
        raise UserError(f"{manifest}: a JSON manifest is a list of objects, got {type(records).__name__}")
    yield from enumerate(records, start=1)


def _json_lines(manifest: str) -> Iterator[tuple[int, Any]]:
    with _lines(manifest) as lines:
        for i, line in enumerate(lines, start=1):
            if line.strip():
                yield i, _json_or_text(line)


def _lines(manifest: str) -> io.TextIOWrapper:
    return io.TextIOWrapper(io.BufferedReader(open_input(manifest)), encoding="utf-8-sig", newline="")


def _json_or_text(line: str) -> Any:
    try:
        return json.loads(line)
    except json.JSONDecodeError:
        return line.strip()
