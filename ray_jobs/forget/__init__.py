"""`worldmodel forget`: clips leave every manifest, plan and cache; what is left of them is said."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ray_jobs.accounting import Ledger
from ray_jobs.errors import JobError, UserError
from ray_jobs.forget.targets import find_targets, read_ids
from ray_jobs.forget.traces import (
    Trace,
    cache_trace,
    ledgers_trace,
    manifest_trace,
    plan_trace,
    rollouts_trace,
)
from ray_jobs.index import read_manifest
from ray_jobs.plan import Plan
from ray_jobs.run_folder import BEST, write_whole
from ray_jobs.tombstones import Targets, bury, read_tombstones
from worldmodel.load_config import load_config


def forget(
    manifest: str, *, ids: Path, runs: Sequence[Path] = (), caches: Sequence[Path] = ()
) -> dict[str, Any]:
    """{clips, removed: {kind: {place: count}}, consumed_by, left: 0}, also as <manifest>.forgotten.json.

    runs: folders that hold run folders; caches besides those that their configs name. Media files themselves
    stay. UserError for unknown ids; JobError when a trace is still there afterwards.
    """
    targets = find_targets(read_ids(ids), read_manifest(manifest), read_tombstones(manifest))
    run_folders = [run for folder in runs for run in _runs(folder)]
    traces = _traces(manifest, run_folders, caches)
    bury(manifest, targets)
    consumed_by = [found for run in run_folders for found in _consumed_by(run, targets)]
    removed: dict[str, dict[str, int]] = {}
    for trace in traces:
        if count := trace.remove(targets):
            removed.setdefault(trace.kind, {})[str(trace.place)] = count
    left = {str(trace.place): found for trace in traces if (found := trace.count(targets))}
    if left:
        where = "; ".join(f"{place}: {count}" for place, count in left.items())
        raise JobError(f"{len(targets.all)} clips were to be forgotten, and traces are left: {where}")
    report = {
        "clips": len(targets.all),
        "searched": [f"{trace.kind} {trace.place}" for trace in traces],
        "removed": removed,
        "left": 0,
        "consumed_by": consumed_by,
        "targets": [asdict(target) for target in targets.all],
    }
    write_whole(Path(f"{manifest}.forgotten.json"), json.dumps(report, indent=1))
    return report


def _runs(folder: Path) -> list[Path]:
    if not folder.is_dir():
        raise UserError(f"--runs {folder}: no such folder; give the folder that holds the runs")
    found = [path.parent for path in sorted(folder.glob("*/plan.parquet"))]
    return [folder, *found] if (folder / "plan.parquet").is_file() else found


def _traces(manifest: str, runs: Sequence[Path], caches: Sequence[Path]) -> list[Trace]:
    found = [manifest_trace(Path(manifest))]
    folders = {Path(cache).resolve() for cache in caches}
    for run in runs:
        own = [
            path
            for path in sorted(run.glob("manifest*.parquet"))
            if path.resolve() != Path(manifest).resolve()
        ]
        found += [*map(manifest_trace, own), plan_trace(run / "plan.parquet"), ledgers_trace(run)]
        found.append(rollouts_trace(run / "rollouts"))
        if (run / "config.yaml").is_file() and (cache := load_config(run / "config.yaml").data.cache):
            folders.add(Path(cache).expanduser().resolve())
    return [*found, *map(cache_trace, sorted(folders))]


def _consumed_by(run: Path, targets: Targets) -> list[dict[str, Any]]:
    """Checkpoints and exports of a run whose weights have seen any of the clips."""
    plan = Plan.load(run / "plan.parquet")
    samples = set(targets.rows(plan.table).tolist()) or set(plan.forgotten_ids.tolist())  # or of a first try
    found = []
    for checkpoint in [*sorted(run.glob("checkpoints/step-*")), *run.glob(BEST)]:
        try:
            ledger = Ledger.from_files(checkpoint)
        except (JobError, OSError, ValueError):
            continue  # half a checkpoint cannot be loaded
        seen = {int(i) for epoch in ledger.epochs() for i in ledger.consumed[epoch]} & samples
        if seen:
            found.append({"run": run.name, "checkpoint": str(checkpoint), "samples": sorted(seen)})
    exported = [path for path in (run / "export",) if path.is_dir() and found]
    last = max((one["samples"] for one in found), key=len, default=[])
    return found + [{"run": run.name, "export": str(path), "samples": last} for path in exported]


def described(report: dict[str, Any]) -> str:
    """Lines for people."""
    lines = [
        f"{report['clips']} clips are forgotten; {len(report['searched'])} places searched, 0 traces left"
    ]
    lines += [
        f"removed: {count} of {kind} {place}"
        for kind, places in report["removed"].items()
        for place, count in places.items()
    ]
    lines += [
        f"has seen {len(found['samples'])}: {found.get('checkpoint') or found.get('export')}"
        for found in report["consumed_by"]
    ]
    if report["consumed_by"]:
        lines.append("weights cannot unlearn: train again without these clips, or delete what has seen them")
    lines.append("the media files themselves are untouched")
    return "\n".join(lines)
