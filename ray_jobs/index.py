"""`worldmodel index`: probe media, write a manifest and, beside it, what could not be used and why."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import ray
from ray.exceptions import WorkerCrashedError

from avtok.decode import ClipError, MediaInfo, probe
from ray_jobs.cluster import tasks_at_once
from ray_jobs.errors import UserError
from ray_jobs.sources import SourceRow, read_sources, with_actions

MANIFEST_SCHEMA = pa.schema(
    [
        *(
            (name, pa.string())
            for name in ("uri", "audio_uri", "caption", "transcript", "speech_json", "actions")
        ),
        *((name, pa.string()) for name in ("license", "content_sha256", "group")),
        *((name, pa.float64()) for name in ("start_s", "end_s", "duration_s", "fps")),
        *((name, pa.bool_()) for name in ("has_video", "has_sound")),
        *((name, pa.int32()) for name in ("width", "height")),
    ]
)
FILES_PER_TASK = 8
HASH_BLOCK_BYTES = 1 << 20
Progress = Callable[[int, int], None]  # (done, total)
ProbeResult = dict[str, Any]  # a manifest row, or {uri, reason}


@dataclass(frozen=True)
class IndexResult:
    """The manifest, how many clips it holds, what was left out ({uri, reason}) and what was odd."""

    manifest: str
    kept: int
    quarantined: list[dict[str, str]]
    warnings: list[str]


def index_sources(
    sources: list[str], *, out: str, workers: int | None = None, progress: Progress | None = None
) -> IndexResult:
    """Probe every clip of `sources` and write `out` (Parquet) and `<out>.quarantine.jsonl`.

    Probes run as Ray tasks where Ray is initialised, at most `workers` at a time, else in this process.
    UserError if a source cannot be read at all or no clip is usable.
    """
    found = read_sources(sources)
    probed: list[ProbeResult] = [{} for _ in found.rows]
    probes = probe_in_tasks(found.rows, workers=workers) if ray.is_initialized() else _probe_here(found.rows)
    for done, (i, result) in enumerate(probes, start=1):
        probed[i] = result
        if progress:
            progress(done, len(found.rows))
    kept = [row for row in probed if "reason" not in row]
    quarantined = found.rejected + [row for row in probed if "reason" in row]
    Path(out).parent.mkdir(parents=True, exist_ok=True)
    _quarantine_file(out).write_text("".join(json.dumps(row) + "\n" for row in quarantined), "utf-8")
    if not kept:
        shown = [f"{row['uri']}: {row['reason']}" for row in quarantined[:5]]
        raise UserError(f"none of {len(quarantined)} clips can be used; see {_quarantine_file(out)}", *shown)
    pq.write_table(pa.Table.from_pylist(kept, schema=MANIFEST_SCHEMA), out)
    return IndexResult(out, len(kept), quarantined, found.warnings)


def probe_row(row: SourceRow) -> ProbeResult:
    """One manifest row, or {uri, reason} for a clip that cannot be used."""
    try:
        row = with_actions(row)
        info = probe(row.uri)
        sound = probe(row.audio_uri) if row.audio_uri else info
        digest = "+".join(_sha256(uri) for uri in (row.uri, row.audio_uri) if uri)
    except (ClipError, OSError) as error:
        return {"uri": row.uri, "reason": " ".join(str(error).split())}
    if row.audio_uri and not sound.has_audio:
        return {"uri": row.uri, "reason": f"{row.audio_uri}: holds no sound"}
    if not info.has_video and not sound.has_sound:
        return {"uri": row.uri, "reason": "holds only silence, and no picture"}
    end_s = info.duration_s if row.end_s is None else min(row.end_s, info.duration_s)
    if row.start_s >= end_s > 0 or (row.start_s and not end_s):
        return {
            "uri": row.uri,
            "reason": f"start_s={row.start_s} lies past the end at {info.duration_s:.3f} s",
        }
    return _manifest_row(row, info, has_sound=sound.has_sound, end_s=end_s, digest=digest)


def probe_in_tasks(
    rows: list[SourceRow],
    probe_one: Callable[[SourceRow], ProbeResult] = probe_row,
    *,
    workers: int | None = None,
) -> Iterator[tuple[int, ProbeResult]]:
    """(row number, result) from Ray tasks of a few files, in the order in which they finish.

    A file that kills its worker (decoders are C) is found by probing its batch one by one, and quarantined.
    """

    def probe_batch(batch: list[SourceRow]) -> list[ProbeResult]:
        return [probe_one(row) for row in batch]

    task = ray.remote(max_retries=0)(probe_batch)
    waiting = [range(i, min(i + FILES_PER_TASK, len(rows))) for i in range(0, len(rows), FILES_PER_TASK)][
        ::-1
    ]
    running: dict[ray.ObjectRef, range] = {}
    limit = workers or tasks_at_once()
    while waiting or running:
        while waiting and len(running) < limit:
            batch = waiting.pop()
            running[task.remote([rows[i] for i in batch])] = batch
        ready, _ = ray.wait(list(running), num_returns=1)
        batch = running.pop(ready[0])
        try:
            results = ray.get(ready[0])
        except WorkerCrashedError:
            if len(batch) > 1:
                waiting += [range(i, i + 1) for i in batch]
                continue
            results = [{"uri": rows[batch[0]].uri, "reason": "the decoder crashed on this file"}]
        yield from zip(batch, results, strict=True)


def describe(manifest: str) -> dict[str, Any]:
    """What a manifest holds: clips, hours, sound and picture, sizes, quarantine by reason."""
    if not Path(manifest).is_file():
        raise UserError(
            f"{manifest}: no such manifest; make one with: worldmodel index SOURCE... --out {manifest}"
        )
    table = read_manifest(manifest)
    rows = table.select(
        ["start_s", "end_s", "has_video", "has_sound", "width", "height", "caption"]
    ).to_pylist()
    sizes = Counter(f"{row['width']}x{row['height']}" for row in rows if row["has_video"])
    bad = read_left_out(manifest)
    return {
        "clips": len(rows),
        "files": len(set(table["uri"].to_pylist())),
        "hours": sum(row["end_s"] - row["start_s"] for row in rows) / 3600,
        "with_sound": sum(row["has_sound"] for row in rows),
        "without_picture": sum(not row["has_video"] for row in rows),
        "with_caption": sum(bool(row["caption"]) for row in rows),
        "sizes": dict(sizes.most_common()),
        "quarantined": len(bad),
        "quarantine_by_reason": dict(Counter(_kind(row) for row in bad).most_common()),
    }


def read_left_out(manifest: str) -> list[dict[str, str]]:
    """{uri, reason} of every file that did not come into the manifest."""
    rejected = _quarantine_file(manifest)
    lines = rejected.read_text("utf-8").splitlines() if rejected.is_file() else []
    return [json.loads(line) for line in lines]


def read_manifest(manifest: str) -> pa.Table:
    """The table that `index_sources` wrote. UserError if the file is something else."""
    try:
        table = pq.read_table(manifest)
    except (pa.ArrowInvalid, FileNotFoundError) as error:
        raise UserError(
            f"{manifest}: not an indexed manifest; run: worldmodel index {manifest} --out M.parquet"
        ) from error
    if missing := [name for name in MANIFEST_SCHEMA.names if name not in table.column_names]:
        raise UserError(
            f"{manifest}: lacks the columns {', '.join(missing)}; "
            f"run: worldmodel index {manifest} --out M.parquet"
        )
    return table.select(MANIFEST_SCHEMA.names).cast(MANIFEST_SCHEMA)


def _probe_here(rows: list[SourceRow]) -> Iterator[tuple[int, ProbeResult]]:
    return ((i, probe_row(row)) for i, row in enumerate(rows))


def _manifest_row(
    row: SourceRow, info: MediaInfo, *, has_sound: bool, end_s: float, digest: str
) -> ProbeResult:
    fields = {
        "duration_s": info.duration_s,
        "has_video": info.has_video,
        "has_sound": has_sound,
        "width": info.width,
        "height": info.height,
        "fps": info.fps,
        "content_sha256": digest,
        # two cuts of one file, or one file under two names, never stand on both sides of a split
        "group": row.group or digest.partition("+")[0],
    }
    return asdict(row) | {"end_s": end_s} | fields


def _sha256(path: str) -> str:
    digest = hashlib.sha256()
    with Path(path).open("rb") as file:
        while block := file.read(HASH_BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()


def _quarantine_file(manifest: str) -> Path:
    return Path(f"{manifest}.quarantine.jsonl")


def _kind(row: dict[str, str]) -> str:
    """The reason without the file that it names, so that equal faults count together."""
    return row["reason"].removeprefix(f"{row['uri']}: ")
