"""`worldmodel label`: a manifest with what was missing made by local models, marked as automatic."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import ray

from avtok.media import Limits
from ray_jobs.cluster import tasks_at_once
from ray_jobs.errors import UserError
from ray_jobs.index import read_manifest
from ray_jobs.labels.journal import Journal
from ray_jobs.labels.labeler import LabelSettings, Task
from ray_jobs.labels.marks import (
    COLUMNS,
    FIELDS,
    LeftOut,
    Made,
    Outcome,
    Row,
    count_people,
    settled,
    wanted_fields,
    with_outcome,
)
from ray_jobs.labels.media import LIMITS
from ray_jobs.labels.models import LabelModels, find_models
from ray_jobs.labels.pool import label_in_actors
from worldmodel.config import LabelConfig

READ = ("uri", "audio_uri", "start_s", "end_s", "content_sha256", "has_video", "has_sound", "width", "height")
WRITTEN = (*COLUMNS.values(), "labels_json")
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class LabelResult:
    """made and kept (what people wrote) by field; left_out by field and reason; the reasons clip by clip lie
    in `report`, JSONL of {uri, start_s, end_s, field, reason, detail}."""

    manifest: str
    report: str
    clips: int
    made: dict[str, int]
    kept: dict[str, int]
    left_out: dict[str, int] = field(default_factory=dict)


def report_file(out: str) -> Path:
    return Path(f"{out}.labels.jsonl")


def label_manifest(
    manifest: str,
    cfg: LabelConfig,
    *,
    out: str,
    progress: Progress | None = None,
    redo: bool = False,
    actors: int | None = None,
    num_gpus: float = 0.0,
    limits: Limits | None = LIMITS,
) -> LabelResult:
    """Writes `out`, the manifest with what could be made, and its report; both may be run again and again.

    out may be the manifest itself. redo: also make anew what models made. num_gpus: of each actor. A run that
    is broken off goes on where it was with the same `out`. UserError for models or a manifest that cannot be
    used. Ray is connected.
    """
    models = find_models(cfg)
    rows, table = _read(manifest)
    rows = [settled(row) for row in rows]
    wanted = [wanted_fields(row, models, redo=redo, min_confidence=cfg.min_confidence) for row in rows]
    tasks = {i: Task(rows[i], fields) for i, fields in enumerate(wanted) if fields}
    by = {"caption": _by(models.captioner), "transcript": _by(models.recognizer), "speech": models.speech_by}
    kept = count_people(rows)
    settings = LabelSettings(models, cfg.min_confidence, cfg.language, num_gpus > 0, limits)
    Path(out).parent.mkdir(parents=True, exist_ok=True)
    outcomes: dict[int, Outcome] = {}
    with Journal(
        f"{out}.labels.part", by | {"least": str(cfg.min_confidence), "in": cfg.language}
    ) as journal:
        outcomes = journal.known(tasks)
        waiting = [i for i in tasks if i not in outcomes]
        if progress and tasks:
            progress(len(outcomes), len(tasks))
        most = min(actors or tasks_at_once(), _most_actors(num_gpus))
        for k, outcome in label_in_actors(
            [tasks[i] for i in waiting], settings, actors=most, num_gpus=num_gpus
        ):
            outcomes[waiting[k]] = outcome
            journal.add(tasks[waiting[k]], outcome)
            if progress:
                progress(len(outcomes), len(tasks))
        rows = [with_outcome(row, outcomes.get(i, {}), by) for i, row in enumerate(rows)]
        _write(out, table, rows)
        _write_report(out, rows, outcomes)
        _copy_quarantine(manifest, out)
        journal.done()
    return _result(out, rows, outcomes, kept, models)


def _by(model: Any) -> str:
    return model.by if model else ""


def _most_actors(num_gpus: float) -> int:
    have = ray.cluster_resources()
    fit = have.get("CPU", 1)
    if num_gpus:
        fit = min(fit, have.get("GPU", 0) / num_gpus)
        if fit < 1:
            raise UserError(
                f"no actor fits: each asks for {num_gpus:g} of a GPU, the cluster has "
                f"{have.get('GPU', 0):g}; leave --gpus out to label on CPUs"
            )
    return max(1, int(fit))


def _read(manifest: str) -> tuple[list[Row], pa.Table]:
    """The columns that labels need, and the whole file as it is."""
    checked = read_manifest(manifest)
    return checked.select([*READ, *WRITTEN]).to_pylist(), pq.read_table(manifest)


def _write(out: str, table: pa.Table, rows: list[Row]) -> None:
    """Whole or not at all; columns that labels do not concern stay as they are."""
    for name in WRITTEN:
        column = pa.array([row[name] or "" for row in rows], pa.string())
        at = table.schema.get_field_index(name)
        table = table.append_column(name, column) if at < 0 else table.set_column(at, name, column)
    part = f"{out}.part"
    pq.write_table(table, part)
    os.replace(part, out)  # noqa: PTH105


def _write_report(out: str, rows: list[Row], outcomes: dict[int, Outcome]) -> None:
    with report_file(out).open("w", encoding="utf-8") as file:
        for i, outcome in sorted(outcomes.items()):
            place = {name: rows[i][name] for name in ("uri", "start_s", "end_s")}
            for name, found in outcome.items():
                if isinstance(found, LeftOut):
                    line = {**place, "field": name, "reason": found.kind, "detail": found.detail}
                    file.write(json.dumps(line, ensure_ascii=False) + "\n")


def _copy_quarantine(manifest: str, out: str) -> None:
    """What was left out of the manifest is left out of this one too."""
    old, new = (Path(f"{name}.quarantine.jsonl") for name in (manifest, out))
    if old.is_file() and old.resolve() != new.resolve():
        new.write_bytes(old.read_bytes())


def _result(
    out: str, rows: list[Row], outcomes: dict[int, Outcome], kept: dict[str, int], models: LabelModels
) -> LabelResult:
    made: dict[str, int] = dict.fromkeys(FIELDS, 0)
    left_out: Counter[str] = Counter()
    for outcome in outcomes.values():
        for name, found in outcome.items():
            if isinstance(found, Made):
                made[name] += 1
            else:
                left_out[f"{name}: {found.kind}"] += 1
    if models.recognizer:
        left_out["transcript: no sound"] = sum(not row["has_sound"] for row in rows)
    if models.captioner:
        left_out["caption: no picture"] = sum(not row["has_video"] for row in rows)
    told = {reason: count for reason, count in left_out.most_common() if count}
    return LabelResult(out, str(report_file(out)), len(rows), made, kept, told)
