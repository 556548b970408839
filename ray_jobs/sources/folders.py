"""A folder of media, or one media file: captions in NAME.txt and other fields in NAME.json beside it."""

from __future__ import annotations

import json
import posixpath
from collections import Counter
from collections.abc import Iterator
from typing import Any

from ray_jobs.errors import UserError
from ray_jobs.sources.ahead import in_order
from ray_jobs.sources.rows import (
    ACTION_SUFFIXES,
    MEDIA_SUFFIXES,
    Notes,
    RowError,
    SourceRow,
    folder_of,
    listed,
    row_of,
    suffix_of,
)
from ray_jobs.stores import StoreError, exists, is_remote, read_bytes, size_of

MAX_SIDECAR_BYTES = 16 << 20
Sidecar = tuple[str, dict[str, Any]]  # caption, other fields


def folder_rows(folder: str, files: list[str], notes: Notes) -> Iterator[SourceRow]:
    """Every media file among `files`, which are all of the folder."""
    media = [uri for uri in files if suffix_of(uri) in MEDIA_SUFFIXES]
    if not media:
        raise UserError(nothing_in(folder, files))
    beside = set(files)
    yield from _rows(media, beside, notes, are_remote=is_remote(folder))


def media_rows(uri: str, notes: Notes) -> Iterator[SourceRow]:
    """One file."""
    stem = posixpath.splitext(uri)[0]
    beside = {name for name in (stem + ".txt", stem + ".json", *_action_files(stem)) if exists(name)}
    return _rows([uri], beside, notes, are_remote=False)


def nothing_in(folder: str, files: list[str]) -> str:
    if not files:
        return f"{folder}: the folder is empty; put media in it"
    kinds = Counter(suffix_of(uri) or "no suffix" for uri in files).most_common(4)
    given = ", ".join(f"{suffix} x {count}" for suffix, count in kinds)
    return f"{folder}: no media among {len(files)} files ({given}); media are {listed(MEDIA_SUFFIXES)}"


def fields_of(text: bytes, notes: Notes) -> dict[str, Any]:
    """The JSON object that stands beside media; {} for other JSON. RowError for what is none."""
    try:
        fields = json.loads(text)
    except ValueError as error:
        raise RowError(f"the .json beside it does not read as JSON: {error}") from None
    if not isinstance(fields, dict):
        notes.unused["(JSON that is no object)"] = None
        return {}
    notes.saw(fields)
    return fields


def _rows(media: list[str], beside: set[str], notes: Notes, *, are_remote: bool) -> Iterator[SourceRow]:
    def read(uri: str) -> tuple[str, SourceRow | None, Notes]:
        own = Notes()
        try:
            return uri, _row(uri, beside, own), own
        except (RowError, StoreError) as error:
            own.reject(uri, error)
            return uri, None, own

    for _, row, own in in_order(read, media, are_remote=are_remote):
        notes.add(own)
        if row is not None:
            yield row


def _row(uri: str, beside: set[str], notes: Notes) -> SourceRow:
    stem = posixpath.splitext(uri)[0]
    fields: dict[str, Any] = {}
    if stem + ".json" in beside:
        fields = fields_of(_read(stem + ".json"), notes)
    if stem + ".txt" in beside:
        fields["caption"] = _read(stem + ".txt").decode("utf-8", errors="replace")
    actions = next((name for name in _action_files(stem) if name in beside), None)
    if actions is not None:
        fields.setdefault("actions", actions)
    return row_of(fields, folder_of(uri), uri=uri)


def _action_files(stem: str) -> list[str]:
    return [f"{stem}.actions{suffix}" for suffix in ACTION_SUFFIXES]


def _read(uri: str) -> bytes:
    if (num_bytes := size_of(uri)) > MAX_SIDECAR_BYTES:
        raise RowError(
            f"{uri}: is {num_bytes} bytes; what stands beside media is at most {MAX_SIDECAR_BYTES}"
        )
    return read_bytes(uri)
