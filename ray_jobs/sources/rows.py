"""One clip as given, and how a record with named fields becomes one."""

from __future__ import annotations

import json
import posixpath
from dataclasses import dataclass, field
from typing import Any

from avtok.media import ClipError
from ray_jobs.stores import is_remote, store_of

# F video frames, A action width.

_MOVING = "mp4 m4v mov mkv webm avi mpg mpeg vob ts mts m2ts 3gp flv ogv wmv mxf gif"
_STILL = "jpg jpeg png webp bmp tif tiff"
_SOUND = "wav mp3 flac ogg oga opus m4a aac wma"
MOVING_SUFFIXES, STILL_SUFFIXES, SOUND_SUFFIXES = (
    frozenset(f".{name}" for name in names.split()) for names in (_MOVING, _STILL, _SOUND)
)
MEDIA_SUFFIXES = MOVING_SUFFIXES | STILL_SUFFIXES | SOUND_SUFFIXES
ACTION_SUFFIXES = (".npy", ".npz", ".parquet", ".json")
ALIASES: dict[str, tuple[str, ...]] = {
    "uri": ("video", "video_path", "media_path", "path", "uri"),
    "audio_uri": ("audio", "audio_path", "audio_uri"),
    "caption": ("caption", "text", "prompt"),
    "transcript": ("transcript",),
    "speech": ("speech", "speech_json"),
    "actions": ("actions",),
    "start_s": ("start_s",),
    "end_s": ("end_s",),
    "license": ("license", "licence"),
    "group": ("group",),
    "id": ("id",),
    "labels": ("labels_json",),
}
KNOWN_FIELDS = frozenset(alias for aliases in ALIASES.values() for alias in aliases)
WRITTEN_FIELDS = frozenset({"scenario", "seed"})  # by `worldmodel collect`, for people
SPEECH_KEYS = frozenset({"start", "end", "speaker", "text"})


@dataclass(frozen=True, slots=True)
class SourceRow:
    """One clip as given. end_s None: to the end. group: clips that stay on one side of a split.

    labels_json: which labels models made, see ray_jobs.labels.marks.
    actions: JSON, F rows (one per frame from start_s on) of A numbers, or the address of a file that holds
    them, which `with_actions` reads.
    """

    uri: str
    audio_uri: str = ""
    caption: str = ""
    transcript: str = ""
    speech_json: str = ""
    actions: str = ""
    license: str = ""
    group: str = ""
    id: str = ""
    labels_json: str = ""
    start_s: float = 0.0
    end_s: float | None = None


@dataclass
class SourceRows:
    """Rows that can be probed, rows that cannot (uri, reason), and warnings."""

    rows: list[SourceRow] = field(default_factory=list)
    rejected: list[dict[str, str]] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


@dataclass
class Notes:
    """What comes up while a source is read, besides its rows. unused: fields that mean nothing here."""

    rejected: list[dict[str, str]] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    unused: dict[str, None] = field(default_factory=dict)  # an ordered set

    def reject(self, uri: str, reason: object) -> None:
        self.rejected.append({"uri": uri, "reason": str(reason)})

    def saw(self, fields: Any) -> None:
        self.unused |= dict.fromkeys(name for name in fields if name not in KNOWN_FIELDS | WRITTEN_FIELDS)

    def add(self, other: Notes) -> None:
        self.rejected += other.rejected
        self.warnings += other.warnings
        self.unused |= other.unused


class RowError(ClipError):
    """One row of a source that cannot be used; its message becomes the quarantine reason."""


def row_of(record: dict[str, Any], base: str, *, uri: str = "") -> SourceRow:
    """base: the folder that relative addresses are relative to. uri: of media beside the record."""
    given = {name: _first(record, aliases) for name, aliases in ALIASES.items()}
    if not uri and not given["uri"]:
        raise RowError(f"names no media; fill one of {', '.join(ALIASES['uri'])}")
    start_s = _seconds(given["start_s"], "start_s") or 0.0
    end_s = _seconds(given["end_s"], "end_s")
    if start_s < 0 or (end_s is not None and end_s <= start_s):
        raise RowError(
            f"start_s={start_s}, end_s={end_s}: the span must begin at 0 or later and end after it begins"
        )
    return SourceRow(
        uri=uri or address(given["uri"], base),
        audio_uri=address(given["audio_uri"], base) if given["audio_uri"] else "",
        caption=_text(given["caption"]),
        transcript=_text(given["transcript"]),
        speech_json=_speech(given["speech"]),
        actions=_actions(given["actions"], base),
        license=_text(given["license"]),
        group=_text(given["group"]),
        id=_text(given["id"]),
        labels_json=_text(given["labels"]),
        start_s=start_s,
        end_s=end_s,
    )


def address(given: Any, base: str) -> str:
    """An absolute address: of a name relative to the folder `base`, local or remote, or the name itself."""
    name = str(given)
    if "://" in name:
        return name
    if not is_remote(base) or name.startswith("/"):
        return posixpath.normpath(posixpath.join(base, name))
    scheme, _, folder = base.partition("://")
    key = posixpath.normpath(posixpath.join(folder, name))
    if key.partition("/")[0] != folder.partition("/")[0]:
        raise RowError(f"{name}: leads out of the bucket of {base}")
    return f"{scheme}://{key}"


def absolute(source: str) -> str:
    """The address of a source, without a slash at its end; links of a local one are followed once."""
    return source.rstrip("/") if is_remote(source) else posixpath.realpath(store_of(source)[1])


def folder_of(uri: str) -> str:
    return uri.rpartition("/")[0] or "/"


def suffix_of(uri: str) -> str:
    """In small letters, with its point; empty when there is none."""
    return posixpath.splitext(uri.rpartition("/")[2])[1].lower()


def listed(suffixes: frozenset[str]) -> str:
    return ", ".join(sorted(suffixes))


def checked_actions(rows: Any) -> str:
    """JSON of F rows of A finite numbers; RowError for anything else."""
    what = "actions must be F rows (one per frame) of A finite numbers"
    if not isinstance(rows, list) or not rows or not all(isinstance(r, list) for r in rows):
        raise RowError(f"{what}, got {rows!r:.60}")
    widths = {len(r) for r in rows}
    numbers = all(isinstance(n, int | float) and abs(n) < float("inf") for r in rows for n in r)
    if len(widths) != 1 or 0 in widths or not numbers:
        raise RowError(f"{what}, got rows of {sorted(widths)} values")
    return json.dumps([[float(n) for n in r] for r in rows])


def _first(record: dict[str, Any], aliases: tuple[str, ...]) -> Any:
    return next((record[a] for a in aliases if record.get(a) not in (None, "")), None)


def _text(value: Any) -> str:
    return "" if value is None else str(value).strip()


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


def _speech(value: Any) -> str:
    if value is None:
        return ""
    what = "speech must be a list of {start, end, speaker, text}"
    cues = _parsed(value, what)
    if not isinstance(cues, list) or not all(isinstance(c, dict) and set(c) >= {"text"} for c in cues):
        raise RowError(f"{what}, got {cues!r:.60}")
    return json.dumps([{k: c[k] for k in sorted(SPEECH_KEYS & set(c))} for c in cues], ensure_ascii=False)


def _actions(value: Any, base: str) -> str:
    if value is None:
        return ""
    if isinstance(value, str) and suffix_of(value) in ACTION_SUFFIXES and not value.lstrip().startswith("["):
        return address(value, base)
    what = f"actions must be F rows of A numbers, or a file of them ({', '.join(ACTION_SUFFIXES)})"
    return checked_actions(_parsed(value, what))


def _parsed(value: Any, what: str) -> Any:
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except json.JSONDecodeError as error:
        raise RowError(f"{what}, got {value!r:.60}") from error
