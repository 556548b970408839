"""What users bring, read into rows: a folder, a media file, or a CSV, JSON, JSONL or Parquet manifest."""

from __future__ import annotations

import csv
import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ray_jobs.errors import UserError

# F video frames, A action width.

_PICTURE = "mp4 m4v mov mkv webm avi mpg mpeg vob ts mts m2ts 3gp flv ogv wmv mxf"
_SOUND = "wav mp3 flac ogg oga opus m4a aac wma"
MEDIA_SUFFIXES = frozenset(f".{name}" for name in f"{_PICTURE} {_SOUND}".split())
MANIFEST_SUFFIXES = frozenset({".csv", ".json", ".jsonl", ".ndjson", ".parquet"})
ALIASES: dict[str, tuple[str, ...]] = {
    "uri": ("video", "video_path", "media_path", "path", "uri"),
    "audio_uri": ("audio", "audio_path", "audio_uri"),
    "caption": ("caption", "text", "prompt"),
    "transcript": ("transcript",),
    "speech": ("speech",),
    "actions": ("actions",),
    "start_s": ("start_s",),
    "end_s": ("end_s",),
    "license": ("license", "licence"),
    "group": ("group",),
}
SPEECH_KEYS = frozenset({"start", "end", "speaker", "text"})


@dataclass(frozen=True)
class SourceRow:
    """One clip as given. end_s None: to the end. group: clips that stay on one side of a split."""

    uri: str
    audio_uri: str = ""
    caption: str = ""
    transcript: str = ""
    speech_json: str = ""
    actions: str = ""
    license: str = ""
    group: str = ""
    start_s: float = 0.0
    end_s: float | None = None


@dataclass
class SourceRows:
    """Rows that can be probed, rows that cannot (uri, reason), and warnings."""

    rows: list[SourceRow] = field(default_factory=list)
    rejected: list[dict[str, str]] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


class RowError(Exception):
    """One row of a manifest that cannot be used; its message becomes the quarantine reason."""


def read_sources(sources: list[str]) -> SourceRows:
    """Rows of every source, each clip once. UserError names every source that cannot be read at all."""
    found, problems = SourceRows(), []
    for source in sources:
        try:
            _read_source(source, found)
        except UserError as error:
            problems += error.lines
    if not sources:
        problems.append(
            "no source given; name a folder, a media file or a CSV, JSON, JSONL or Parquet manifest"
        )
    if problems:
        raise UserError(*problems)
    seen: set[tuple[object, ...]] = set()
    kept: list[SourceRow] = []
    for row in found.rows:
        key = (row.uri, row.audio_uri, row.start_s, row.end_s)
        if key in seen:
            found.rejected.append({"uri": row.uri, "reason": "listed more than once; the first is used"})
        else:
            seen.add(key)
            kept.append(row)
    found.rows = kept
    return found


def _read_source(source: str, found: SourceRows) -> None:
    if "://" in source:
        raise UserError(f"{source}: remote sources are not read; mount the store or copy it to a folder")
    path = Path(source)
    if not path.exists():
        raise UserError(f"{source}: no such file or folder")
    if path.is_dir():
        found.rows += _folder_rows(path)
    elif path.suffix.lower() in MANIFEST_SUFFIXES:
        _read_manifest(path, found)
    elif path.suffix.lower() in MEDIA_SUFFIXES:
        found.rows.append(_media_row(path))
    else:
        raise UserError(
            f"{source}: {path.suffix or 'a name without suffix'} is neither media nor a manifest; "
            f"give a folder, {_listed(MANIFEST_SUFFIXES)} or media"
        )


def _folder_rows(folder: Path) -> list[SourceRow]:
    files = sorted(f for f in folder.rglob("*") if f.is_file() and not f.name.startswith("."))
    if not files:
        raise UserError(f"{folder}: the folder is empty; put media in it")
    media = [f for f in files if f.suffix.lower() in MEDIA_SUFFIXES]
    if not media:
        kinds = Counter(f.suffix.lower() or "no suffix" for f in files).most_common(4)
        given = ", ".join(f"{suffix} x {count}" for suffix, count in kinds)
        raise UserError(
            f"{folder}: no media among {len(files)} files ({given}); media are {_listed(MEDIA_SUFFIXES)}"
        )
    return [_media_row(f) for f in media]


def _media_row(path: Path) -> SourceRow:
    sidecar = path.with_suffix(".txt")
    caption = sidecar.read_text("utf-8", errors="replace").strip() if sidecar.is_file() else ""
    return SourceRow(uri=str(path.resolve()), caption=caption)


def _read_manifest(path: Path, found: SourceRows) -> None:
    columns: dict[str, None] = {}  # an ordered set
    records: list[tuple[str, dict[str, Any]]] = []
    for where, record in _records(path):
        if isinstance(record, dict):
            columns |= dict.fromkeys(record)
            records.append((where, record))
        else:
            found.rejected.append(
                {"uri": where, "reason": f"not an object of named fields but {record!r:.60}"}
            )
    names = {alias: name for name, aliases in ALIASES.items() for alias in aliases}
    if records and not set(columns) & set(ALIASES["uri"]):
        raise UserError(
            f"{path}: no column names the media; it has {', '.join(columns) or 'no columns'}; "
            f"use one of {', '.join(ALIASES['uri'])}"
        )
    if not records and not found.rejected:
        raise UserError(f"{path}: the manifest has no rows")
    if unknown := [c for c in columns if c not in names]:
        found.warnings.append(f"{path}: columns that are not used: {', '.join(unknown)}")
    for where, record in records:
        try:
            found.rows.append(_row(record, path.parent))
        except RowError as error:
            found.rejected.append({"uri": where, "reason": str(error)})


def _records(path: Path) -> Iterator[tuple[str, Any]]:
    """(file:line, record) of a manifest. A JSONL line that does not parse is given as its text."""
    suffix = path.suffix.lower()
    try:
        if suffix == ".parquet":
            for i, record in enumerate(pq.read_table(path).to_pylist(), start=1):
                yield f"{path}:{i}", record
        elif suffix == ".csv":
            with path.open(encoding="utf-8-sig", newline="") as lines:
                reader = csv.DictReader(lines)
                for record in reader:
                    extra = record.pop(None, None)  # pyright: ignore[reportArgumentType]
                    yield f"{path}:{reader.line_num}", extra if extra else record
        elif suffix == ".json":
            records = json.loads(path.read_text("utf-8-sig"))
            if not isinstance(records, list):
                raise UserError(f"{path}: a JSON manifest is a list of objects, got {type(records).__name__}")
            for i, record in enumerate(records, start=1):
                yield f"{path}:{i}", record
        else:
            for i, line in enumerate(path.read_text("utf-8-sig").splitlines(), start=1):
                if line.strip():
                    yield f"{path}:{i}", _json_or_text(line)
    except (pa.ArrowInvalid, json.JSONDecodeError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path}: does not read as {suffix[1:]}: {error}") from error


def _json_or_text(line: str) -> Any:
    try:
        return json.loads(line)
    except json.JSONDecodeError:
        return line


def _row(record: dict[str, Any], folder: Path) -> SourceRow:
    given = {name: _first(record, aliases) for name, aliases in ALIASES.items()}
    if not given["uri"]:
        raise RowError(f"names no media; fill one of {', '.join(ALIASES['uri'])}")
    start_s = _seconds(given["start_s"], "start_s") or 0.0
    end_s = _seconds(given["end_s"], "end_s")
    if start_s < 0 or (end_s is not None and end_s <= start_s):
        raise RowError(
            f"start_s={start_s}, end_s={end_s}: the span must begin at 0 or later and end after it begins"
        )
    return SourceRow(
        uri=_resolved(given["uri"], folder),
        audio_uri=_resolved(given["audio_uri"], folder) if given["audio_uri"] else "",
        caption=str(given["caption"] or "").strip(),
        transcript=str(given["transcript"] or "").strip(),
        speech_json=_speech(given["speech"]),
        actions=_actions(given["actions"]),
        license=str(given["license"] or ""),
        group=str(given["group"] or ""),
        start_s=start_s,
        end_s=end_s,
    )


def _first(record: dict[str, Any], aliases: tuple[str, ...]) -> Any:
    return next((record[a] for a in aliases if record.get(a) not in (None, "")), None)


def _resolved(uri: Any, folder: Path) -> str:
    uri = str(uri)
    return uri if "://" in uri else str((folder / uri).resolve())


def _seconds(value: Any, name: str) -> float | None:
    if value is None:
        return None
    try:
        seconds = float(value)
    except (TypeError, ValueError) as error:
        raise RowError(f"{name}={value!r} is not a number of seconds") from error
    if not abs(seconds) < float("inf"):
        raise RowError(f"{name}={value!r} is not a finite number of seconds")
    return seconds


def _parsed(value: Any, what: str) -> Any:
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except json.JSONDecodeError as error:
        raise RowError(f"{what}, got {value!r:.60}") from error


def _speech(value: Any) -> str:
    if value is None:
        return ""
    what = "speech must be a list of {start, end, speaker, text}"
    cues = _parsed(value, what)
    if not isinstance(cues, list) or not all(isinstance(c, dict) and set(c) >= {"text"} for c in cues):
        raise RowError(f"{what}, got {cues!r:.60}")
    return json.dumps([{k: c[k] for k in sorted(SPEECH_KEYS & set(c))} for c in cues], ensure_ascii=False)


def _actions(value: Any) -> str:
    if value is None:
        return ""
    what = "actions must be F rows (one per frame) of A finite numbers"
    rows = _parsed(value, what)
    if not isinstance(rows, list) or not all(isinstance(r, list) for r in rows):
        raise RowError(f"{what}, got {rows!r:.60}")
    widths = {len(r) for r in rows}
    numbers = all(isinstance(n, int | float) and abs(n) < float("inf") for r in rows for n in r)
    if len(widths) != 1 or 0 in widths or not numbers:
        raise RowError(f"{what}, got rows of {sorted(widths)} values")
    return json.dumps([[float(n) for n in r] for r in rows])


def _listed(suffixes: frozenset[str]) -> str:
    return ", ".join(sorted(suffixes))
