"""What users bring, read into rows, each clip once."""

from __future__ import annotations

from collections.abc import Iterator

from ray_jobs.errors import UserError
from ray_jobs.sources.folders import folder_rows, media_rows, nothing_in
from ray_jobs.sources.lerobot import is_lerobot, lerobot_rows
from ray_jobs.sources.rows import (
    MEDIA_SUFFIXES,
    Notes,
    SourceRow,
    SourceRows,
    absolute,
    listed,
    suffix_of,
)
from ray_jobs.sources.tables import MANIFEST_SUFFIXES, manifest_rows
from ray_jobs.sources.webdataset import shard_rows, shards_of
from ray_jobs.stores import StoreError, exists, is_folder, list_files, missing

CAMERA = "?camera="
MAX_NAMED = 20  # fields that a warning lists
COMPRESSED = (".tar.gz", ".tgz", ".tar.xz", ".tar.bz2", ".tar.zst")


def read_sources(sources: list[str]) -> SourceRows:
    """Rows of every source, each clip once. UserError names every source that cannot be read at all."""
    found, problems = SourceRows(), []
    seen: set[tuple[object, ...]] = set()
    for source in sources:
        notes = Notes()
        try:
            for row in source_rows(source, notes):
                key = (row.uri, row.audio_uri, row.start_s, row.end_s)
                if key in seen:
                    notes.reject(row.uri, "listed more than once; the first is used")
                else:
                    seen.add(key)
                    found.rows.append(row)
        except UserError as error:
            problems += error.lines
        except StoreError as error:
            problems.append(str(error))
        found.rejected += notes.rejected
        found.warnings += notes.warnings + _unused(source, notes)
    if not sources:
        problems.append(
            "no source given; name a folder, a media file, a CSV, JSON, JSONL or Parquet manifest, "
            "a WebDataset tar or a LeRobot data set"
        )
    if problems:
        raise UserError(*problems)
    return found


def source_rows(source: str, notes: Notes) -> Iterator[SourceRow]:
    """One after the other. UserError or StoreError for a source that cannot be read at all."""
    place, _, camera = source.partition(CAMERA)
    if "{" in place and not exists(place):
        return shard_rows(_there(shards_of(place)), notes)
    if not exists(place):
        raise UserError(missing(place))
    uri = absolute(place)
    if is_folder(uri):
        return _folder(uri, camera, notes)
    suffix = suffix_of(uri)
    if suffix in MANIFEST_SUFFIXES:
        return manifest_rows(uri, notes)
    if suffix == ".tar":
        return shard_rows([uri], notes)
    if suffix in MEDIA_SUFFIXES:
        return media_rows(uri, notes)
    if uri.lower().endswith(COMPRESSED):
        raise UserError(f"{source}: a compressed archive cannot be read by byte range; store it as .tar")
    raise UserError(
        f"{source}: {suffix or 'a name without suffix'} is neither media nor a manifest; "
        f"give a folder, {listed(MANIFEST_SUFFIXES)}, .tar or media"
    )


def _folder(folder: str, camera: str, notes: Notes) -> Iterator[SourceRow]:
    if is_lerobot(folder):
        yield from lerobot_rows(folder, camera, notes)
        return
    files = [uri for uri in list_files(folder) if not _is_hidden(uri, folder)]
    shards = [uri for uri in files if suffix_of(uri) == ".tar"]
    media = any(suffix_of(uri) in MEDIA_SUFFIXES for uri in files)
    if not shards and not media:
        raise UserError(nothing_in(folder, files))
    if media:
        yield from folder_rows(folder, files, notes)
    if shards:
        yield from shard_rows(shards, notes)


def _there(shards: list[str]) -> list[str]:
    missing = [shard for shard in shards if not exists(shard)]
    if missing:
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        raise UserError(f"{', '.join(missing[:3])}{more}: no such shard ({len(missing)} of {len(shards)})")
    return [absolute(shard) for shard in shards]


def _is_hidden(uri: str, folder: str) -> bool:
    return any(part.startswith(".") for part in uri[len(folder) :].split("/"))


def _unused(source: str, notes: Notes) -> list[str]:
    names = list(notes.unused)
    more = f" and {len(names) - MAX_NAMED} more" if len(names) > MAX_NAMED else ""
    return [f"{source}: columns that are not used: {', '.join(names[:MAX_NAMED])}{more}"] if names else []
