"""How many clips sources hold and how long a pass over them is, before anything is indexed. Needs no Ray."""

from __future__ import annotations

import io
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from avtok.decode import ClipError, probe
from avtok.media import MediaInfo
from ray_jobs.buckets import Kinds, buckets_of
from ray_jobs.cuts import make_cuts
from ray_jobs.errors import UserError
from ray_jobs.learnable import Contents
from ray_jobs.manifest_columns import ManifestColumns
from ray_jobs.manifest_table import MANIFEST_SCHEMA, manifest_row
from ray_jobs.sources import SourceRow, read_sources
from ray_jobs.stores import StoreError, local_copy, member_of
from worldmodel.config import RunConfig

PROBED = 64  # files of a source that was not indexed; the rest are taken to be like them


@dataclass(frozen=True)
class _Looked:
    """What was found out about one source. share: how many times as many rows it has. is_opened: its files
    were, by us or by an index."""

    columns: str | BinaryIO
    known: str
    share: float = 1.0
    is_opened: bool = True


@dataclass(frozen=True)
class Described:
    """facts: clips, hours and micro-batches of a pass; {known: why not} for sources that cannot be looked at.
    Where files were opened, what clips for training hold; where all were, the kinds of micro-batches."""

    facts: dict[str, Any]
    contents: Contents | None = None
    kinds: Kinds = None


def describe_data(cfg: RunConfig) -> Described:
    """UserError for a source that is not there."""
    if not cfg.data.sources:
        return Described({"known": "no: data.manifest is not set"})
    looked: list[_Looked] = []
    for source in cfg.data.sources:
        if why := _why_unknown(source.manifest):
            return Described({"known": f"no: {why}"})
        looked.append(_indexed(source.manifest) or _probed(source.manifest))
    return _counted(cfg, looked)


def _counted(cfg: RunConfig, looked: list[_Looked]) -> Described:
    """Cut as the plan cuts them, all sources together: so much is held out of all."""
    buckets, share_S = buckets_of(cfg), np.array([one.share for one in looked])
    manifest = ManifestColumns({str(number): one.columns for number, one in enumerate(looked)})
    cuts, source_N = make_cuts(manifest, cfg, buckets), manifest.source_N
    source_C, trained_C = source_N[cuts.row_S], ~cuts.held_out_S
    if not len(source_N):
        raise UserError(f"{', '.join(source.manifest for source in cfg.data.sources)}: holds no clips")
    batches = 0
    for source, bucket in np.ndindex(len(looked), len(buckets)):
        own = np.count_nonzero(trained_C & (source_C == source) & (cuts.bucket_S == bucket))
        batches += math.ceil(share_S[source] * own / buckets[bucket].batch_clips)
    batches = max(1, batches)
    seconds_N = manifest.numbers("end_s") - manifest.numbers("start_s")
    facts = {
        "known": looked[0].known if len(looked) == 1 else f"{len(looked)} sources",
        "clips": round(share_S[source_C].sum()),
        "hours": float((share_S[source_N] * seconds_N).sum() / 3600),
        "batches_per_epoch": batches,
        "steps_per_epoch": batches / cfg.train.micro_batches,
        "epochs": cfg.train.steps * cfg.train.micro_batches / batches,
    }
    if not all(one.is_opened for one in looked) or not trained_C.any():
        return Described(facts)
    kind_C = np.array([bucket.kind for bucket in buckets])[cuts.bucket_S]
    seen_C, heard_C = (manifest.numbers(name)[cuts.row_S] for name in ("has_video", "has_sound"))
    contents = Contents.of(
        seen_C[trained_C],
        heard_C[trained_C],
        kind_C[trained_C] == "still",
        is_sample=any(one.share > 1 for one in looked),
    )
    kinds: Kinds = None
    if not contents.is_sample:  # of files that were not looked at, one film more needs more memory
        kinds = frozenset(bucket.kind for bucket in buckets if bucket.kind in kind_C)
    return Described(facts, contents, kinds)


def is_elsewhere(path: str) -> bool:
    """Whether it may be on the cluster alone. A relative path is of this machine; of shards like
    clips-{00..31}.tar their folder is looked for."""
    before, brace, _ = path.partition("?")[0].partition("{")
    place = Path(before.rpartition("/")[0] if brace else before).expanduser()
    return place.is_absolute() and not place.exists()


def _why_unknown(manifest: str) -> str:
    if "://" in manifest:
        return f"{manifest} is remote"
    if is_elsewhere(manifest):
        return f"{manifest} is not on this machine: its clips and epochs are not known"
    return ""


def _indexed(manifest: str) -> _Looked | None:
    """What `worldmodel index` wrote; None for anything else."""
    if Path(manifest).suffix != ".parquet" or not Path(manifest).is_file():
        return None
    try:
        ManifestColumns({"clips": manifest})
    except UserError:
        return None
    return _Looked(manifest, "indexed")


def _probed(manifest: str) -> _Looked:
    """As an index of these rows would be. A file that cannot be used is left out, as the run would do."""
    rows = read_sources([manifest]).rows
    looked_at = rows[:: math.ceil(len(rows) / PROBED)]
    found = [(row, *_infos(row)) for row in looked_at]
    made = [manifest_row(row, info, sound, digest=row.uri) for row, info, sound in found if info is not None]
    usable = [row for row in made if not isinstance(row, str)]
    if not usable:
        raise UserError(f"{manifest}: none of {len(looked_at)} files can be opened as media")
    known, columns = f"from {len(looked_at)} of {len(rows)} files", io.BytesIO()
    pq.write_table(pa.Table.from_pylist(usable, schema=MANIFEST_SCHEMA), columns)
    is_opened = all(_is_here(uri) for row in looked_at for uri in (row.uri, row.audio_uri) if uri)
    return _Looked(columns, known, len(rows) / len(looked_at), is_opened)


def _is_here(uri: str) -> bool:
    """On this machine: none is fetched."""
    return "://" not in uri and bool(member_of(uri) or Path(uri).exists())


def _infos(row: SourceRow) -> tuple[MediaInfo | None, MediaInfo | None]:
    """Of its file, and of the one that holds its sound. None, None where either cannot be used."""
    info = _info(row, row.uri)
    if info is None or not row.audio_uri:
        return info, None
    sound = _info(row, row.audio_uri)
    return (None, None) if sound is None else (info, sound)


def _info(row: SourceRow, uri: str) -> MediaInfo | None:
    """Of a file that is not here what its row says of it, where that tells its length. None is fetched."""
    if _is_here(uri):
        try:
            return probe(str(local_copy(uri)))
        except (ClipError, StoreError, OSError):
            return None
    if row.end_s is None:
        return None
    unknown = {"width": 0, "height": 0, "fps": 0.0, "sample_rate": 0, "origin_s": 0.0, "reason": ""}
    there = {"has_video": True, "has_audio": True, "has_sound": True}
    return MediaInfo(uri, duration_s=row.end_s, **there, **unknown)  # pyright: ignore[reportArgumentType]
