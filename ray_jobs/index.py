"""`worldmodel index`: probe media, write a manifest and, beside it, what could not be used and why."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from avtok.media import ClipError, Limits
from ray_jobs.errors import UserError
from ray_jobs.filters import filtered
from ray_jobs.manifest_table import (
    MANIFEST_SCHEMA,
    manifest_row,
    quarantine_file,
    read_left_out,
    read_manifest,
    write_manifest,
)
from ray_jobs.probing import Probed, load_probes, probe_files, probe_in_tasks, save_probes
from ray_jobs.sources import SourceRow, SourceRows, read_sources, with_actions
from ray_jobs.tombstones import Targets, read_tombstones
from worldmodel.config import FilterConfig
from worldmodel.reasons import FORGOTTEN

__all__ = [
    "MANIFEST_SCHEMA",
    "IndexResult",
    "index_sources",
    "probe_in_tasks",
    "read_left_out",
    "read_manifest",
]

Progress = Callable[[int, int], None]  # (done, total)
LIMITS = Limits()


@dataclass(frozen=True)
class IndexResult:
    """The manifest, how many clips it holds, what was left out ({uri, reason}) and what was odd.

    reused: files that were not opened, because the index before knew them.
    """

    manifest: str
    kept: int
    quarantined: list[dict[str, str]]
    warnings: list[str]
    reused: int = 0


def index_sources(
    sources: list[str],
    *,
    out: str,
    filters: FilterConfig | None = None,
    limits: Limits | None = LIMITS,
    fresh: bool = False,
    workers: int | None = None,
    progress: Progress | None = None,
    look_progress: Progress | None = None,
) -> IndexResult:
    """Probe every file of `sources` and write `out` (Parquet), `<out>.quarantine.jsonl` and `<out>.probes`.

    Files are opened in a process that is killed beyond `limits` (None: in this one). Probes run as Ray tasks
    where Ray is initialised, at most `workers` at a time. fresh: open even what did not change since `out`
    was written. UserError if a source cannot be read at all or no clip is usable.
    """
    found = read_sources(sources)
    probes_file = Path(f"{out}.probes")
    known = {} if fresh else load_probes(probes_file)
    uris = list(dict.fromkeys(uri for row in found.rows for uri in (row.uri, row.audio_uri) if uri))
    probed: dict[str, Probed] = {}
    reused = 0
    for done, result in enumerate(probe_files(uris, limits=limits, known=known, workers=workers), start=1):
        probed[result.uri] = result
        reused += result is known.get(result.uri)
        if progress:
            progress(done, len(uris))
    rows, bad = _not_forgotten(out, *_rows(found, probed))
    if filters is not None and rows:
        rows, dropped = filtered(rows, filters, limits=limits, workers=workers, progress=look_progress)
        bad += dropped
    Path(out).parent.mkdir(parents=True, exist_ok=True)
    quarantine_file(out).write_text("".join(json.dumps(row) + "\n" for row in bad), "utf-8")
    if not rows:
        shown = [f"{row['uri']}: {row['reason']}" for row in bad[:5]]
        raise UserError(f"none of {len(bad)} clips can be used; see {quarantine_file(out)}", *shown)
    save_probes(probes_file, list(probed.values()))
    write_manifest(out, rows)
    return IndexResult(out, len(rows), bad, found.warnings, reused)


def _not_forgotten(
    out: str, rows: list[dict[str, Any]], bad: list[dict[str, str]]
) -> tuple[list[dict[str, Any]], list[dict[str, str]]]:
    """Without clips that `worldmodel forget` took out of the manifest before."""
    gone = Targets(tuple(read_tombstones(out)))
    hit = [gone.hit(row["content_sha256"], row["start_s"], row["end_s"]) for row in rows]
    kept = [row for row, is_gone in zip(rows, hit, strict=True) if not is_gone]
    bad += [
        {"uri": row["uri"], "reason": FORGOTTEN} for row, is_gone in zip(rows, hit, strict=True) if is_gone
    ]
    return kept, bad


def _rows(found: SourceRows, probed: dict[str, Probed]) -> tuple[list[dict[str, Any]], list[dict[str, str]]]:
    """Rows of the manifest in the order of the sources, and what was left out."""
    kept: list[dict[str, Any]] = []
    bad = list(found.rejected)
    for row in found.rows:
        made = _row(row, probed)
        if isinstance(made, str):
            bad.append({"uri": row.uri, "reason": made})
        else:
            kept.append(made)
    return kept, bad


def _row(row: SourceRow, probed: dict[str, Probed]) -> dict[str, Any] | str:
    files = [probed[uri] for uri in (row.uri, row.audio_uri) if uri]
    infos = [file.info for file in files if file.info is not None]
    if len(infos) < len(files):
        return next(file.reason for file in files if file.info is None)
    try:
        row = with_actions(row)
    except (ClipError, OSError) as error:
        return " ".join(str(error).split())
    digest = "+".join(file.sha256 for file in files)
    return manifest_row(row, infos[0], infos[1] if len(infos) > 1 else None, digest=digest)
