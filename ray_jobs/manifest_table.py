"""The manifest as a file: its columns, one row of it from what is given and what is known, and reading it."""

from __future__ import annotations

import json
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from avtok.media import MediaInfo
from avtok.timing import drift_s
from ray_jobs.errors import UserError
from ray_jobs.sources.rows import SourceRow

_ARROW = {
    "str": pa.string(),
    "float": pa.float64(),
    "float | None": pa.float64(),
    "int": pa.int32(),
    "int | None": pa.int32(),
    "bool": pa.bool_(),
}
GIVEN = (
    *(
        (name, pa.string())
        for name in ("uri", "audio_uri", "caption", "transcript", "speech_json", "actions")
    ),
    *((name, pa.string()) for name in ("license", "content_sha256", "group")),
    *((name, pa.float64()) for name in ("start_s", "end_s", "duration_s", "fps")),
    *((name, pa.bool_()) for name in ("has_video", "has_sound")),
    *((name, pa.int32()) for name in ("width", "height")),
    ("id", pa.string()),
    ("labels_json", pa.string()),  # which labels models made, see ray_jobs.labels.marks
    ("note", pa.string()),  # what of the file could not be used
)
_NOT_FACTS = {"uri", "reason", "has_audio", *(name for name, _ in GIVEN)}
FACTS = tuple((f.name, _ARROW[str(f.type)]) for f in fields(MediaInfo) if f.name not in _NOT_FACTS)
MANIFEST_SCHEMA = pa.schema([*GIVEN, *FACTS])
OF_SOUND = (
    *("sample_rate", "audio_codec", "channels", "num_audio_streams", "audio_stream", "has_sound"),
    *("loudness_lufs", "peak_dbfs", "rms_dbfs", "silent_fraction", "num_gaps", "missing_s", "clock_drift_s"),
)


def manifest_row(
    row: SourceRow, info: MediaInfo, sound: MediaInfo | None, *, digest: str
) -> dict[str, Any] | str:
    """One row of the manifest, or the reason why there is none. sound: of the file at row.audio_uri."""
    if sound is not None and not sound.has_audio:
        return f"{row.audio_uri}: holds no sound"
    info = info if sound is None else joined(info, sound)
    if not info.has_video and not info.has_sound:
        return "holds only silence, and no picture"
    end_s = info.duration_s if row.end_s is None else min(row.end_s, info.duration_s)
    if row.start_s >= end_s > 0 or (row.start_s and not end_s):
        return f"start_s={row.start_s} lies past the end at {info.duration_s:.3f} s"
    facts = {name: getattr(info, name) for name, _ in FACTS}
    return {
        **{name: value for name, value in asdict(row).items() if name in MANIFEST_SCHEMA.names},
        **facts,
        "end_s": end_s,
        "duration_s": info.duration_s,
        "fps": info.fps,
        "has_video": info.has_video,
        "has_sound": info.has_sound,
        "width": info.width,
        "height": info.height,
        "note": info.reason,
        "content_sha256": digest,
        # two cuts of one file, or one file under two names, never stand on both sides of a split
        "group": row.group or digest.partition("+")[0],
    }


def joined(info: MediaInfo, sound: MediaInfo) -> MediaInfo:
    """A picture with the sound of another file; each file's own origin is the clip's time 0."""
    taken: dict[str, Any] = {name: getattr(sound, name) for name in OF_SOUND}
    shift_s = info.origin_s - sound.origin_s
    for name in ("audio_start_s", "audio_end_s"):
        own_s = getattr(sound, name)
        taken[name] = None if own_s is None else own_s + shift_s
    taken["decode_cost_s"] = info.decode_cost_s + sound.decode_cost_s
    taken |= {"av_start_s": None, "av_end_s": None, "drift_s": abs(sound.clock_drift_s)}
    if info.video_start_s is not None and info.video_end_s is not None and taken["audio_end_s"] is not None:
        start_s, end_s = taken["audio_start_s"] - info.video_start_s, taken["audio_end_s"] - info.video_end_s
        taken |= {"av_start_s": start_s, "av_end_s": end_s}
        if info.num_frames > 1:
            taken["drift_s"] = drift_s(start_s=start_s, end_s=end_s, clock_s=sound.clock_drift_s)
    reason = "; ".join(said for said in (info.reason, sound.reason) if said)
    return replace(info, has_audio=True, reason=reason, **taken)


def write_manifest(path: str, rows: list[dict[str, Any]]) -> None:
    pq.write_table(pa.Table.from_pylist(rows, schema=MANIFEST_SCHEMA), path)


def read_manifest(manifest: str) -> pa.Table:
    """The table that `index_sources` wrote. UserError if the file is something else."""
    try:
        table = pq.read_table(manifest)
    except (pa.ArrowInvalid, FileNotFoundError) as error:
        raise UserError(
            f"{manifest}: not an indexed manifest; run: worldmodel index {manifest} --out M.parquet"
        ) from error
    if "labels_json" not in table.column_names:  # of a manifest from before there were automatic labels
        table = table.append_column("labels_json", pa.array([""] * table.num_rows, pa.string()))
    if missing := [name for name in MANIFEST_SCHEMA.names if name not in table.column_names]:
        raise UserError(
            f"{manifest}: lacks the columns {', '.join(missing)}; "
            f"run: worldmodel index {manifest} --out M.parquet"
        )
    return table.select(MANIFEST_SCHEMA.names).cast(MANIFEST_SCHEMA)


def read_left_out(manifest: str) -> list[dict[str, str]]:
    """{uri, reason} of every clip that did not come into the manifest."""
    rejected = quarantine_file(manifest)
    lines = rejected.read_text("utf-8").splitlines() if rejected.is_file() else []
    return [json.loads(line) for line in lines]


def quarantine_file(manifest: str) -> Path:
    return Path(f"{manifest}.quarantine.jsonl")


def plain_reason(row: dict[str, str]) -> str:
    """The reason without the file that it names, so that equal faults count together."""
    uri = row["uri"]
    return row["reason"].removeprefix(f"{uri}: ").replace(f": 'file:{uri}'", "")
