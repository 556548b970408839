"""How many clips sources hold and how long a pass over them is, before anything is indexed. Needs no Ray."""

from __future__ import annotations

import io
import math
from pathlib import Path
from typing import Any

import numpy as np

from avtok.decode import ClipError, probe
from ray_jobs.buckets import buckets_of
from ray_jobs.cuts import make_cuts
from ray_jobs.errors import UserError
from ray_jobs.manifest_columns import ManifestColumns
from ray_jobs.manifest_table import manifest_row, write_manifest
from ray_jobs.sources import SourceRow, read_sources
from worldmodel.config import RunConfig

PROBED = 64  # files of a source that was not indexed; the rest are taken to be like them


def describe_data(cfg: RunConfig) -> dict[str, Any]:
    """Clips, hours and micro-batches of a pass over the sources; {known: why not} when they cannot be looked
    at. UserError for a source that is not there."""
    if not cfg.data.sources:
        return {"known": "no: data.manifest is not set"}
    parts = [_describe_source(cfg, source.manifest) for source in cfg.data.sources]
    unknown = [part for part in parts if "clips" not in part]
    if unknown or len(parts) == 1:
        return unknown[0] if unknown else parts[0]
    total = {name: sum(part[name] for part in parts) for name in ("clips", "hours", "batches_per_epoch")}
    return _with_epochs(cfg, {"known": f"{len(parts)} sources", **total})


def is_elsewhere(path: str) -> bool:
    """Whether it may be on the cluster alone. A relative path is of this machine; of shards like
    clips-{00..31}.tar their folder is looked for."""
    before, brace, _ = path.partition("?")[0].partition("{")
    place = Path(before.rpartition("/")[0] if brace else before).expanduser()
    return place.is_absolute() and not place.exists()


def _describe_source(cfg: RunConfig, manifest: str) -> dict[str, Any]:
    if "://" in manifest:
        return {"known": f"no: {manifest} is remote"}
    if is_elsewhere(manifest):
        return {"known": f"no: {manifest} is not on this machine: its clips and epochs are not known"}
    columns, known, share = _indexed(manifest), "indexed", 1.0
    if columns is None:
        rows = read_sources([manifest]).rows
        looked_at = rows[:: math.ceil(len(rows) / PROBED)]
        columns, known = _probed(manifest, looked_at), f"from {len(looked_at)} of {len(rows)} files"
        share = len(rows) / len(looked_at)
    buckets = buckets_of(cfg)
    cuts = make_cuts(columns, cfg, buckets)
    trained = share * np.bincount(cuts.bucket_S[~cuts.held_out_S], minlength=len(buckets))
    batches = [math.ceil(clips / bucket.batch_clips) for clips, bucket in zip(trained, buckets, strict=True)]
    seconds = float((columns.numbers("end_s") - columns.numbers("start_s")).sum())
    facts = {"known": known, "clips": round(share * len(cuts.row_S)), "hours": share * seconds / 3600}
    return _with_epochs(cfg, facts | {"batches_per_epoch": max(1, sum(batches))})


def _with_epochs(cfg: RunConfig, facts: dict[str, Any]) -> dict[str, Any]:
    batches = facts["batches_per_epoch"]
    return facts | {
        "steps_per_epoch": batches / cfg.train.micro_batches,
        "epochs": cfg.train.steps * cfg.train.micro_batches / batches,
    }


def _indexed(manifest: str) -> ManifestColumns | None:
    """What `worldmodel index` wrote; None for anything else."""
    if Path(manifest).suffix != ".parquet" or not Path(manifest).is_file():
        return None
    try:
        return ManifestColumns({"clips": manifest})
    except UserError:
        return None


def _probed(manifest: str, rows: list[SourceRow]) -> ManifestColumns:
    """As an index of these rows would be. A file that cannot be used is left out, as the run would do."""
    made = [manifest_row(row, info, None, digest=row.uri) for row in rows if (info := _info(row)) is not None]
    usable = [row for row in made if not isinstance(row, str)]
    if not usable:
        raise UserError(f"{manifest}: none of {len(rows)} files can be opened as media")
    buffer = io.BytesIO()
    write_manifest(buffer, usable)
    return ManifestColumns({"clips": buffer})


def _info(row: SourceRow) -> Any:
    try:
        return probe(row.uri)
    except (ClipError, OSError):
        return None
