"""Where traces of a clip lie: manifests, plans, caches, rollouts, ledgers. Each can be counted and removed.

Removing and counting read the same files by different code paths as little as they can: what `count` finds
after `remove` is the proof.
"""

# pyarrow makes the functions of pyarrow.compute when it is imported
# pyright: reportAttributeAccessIssue=false

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from safetensors import SafetensorError, safe_open

from ray_jobs.errors import UserError
from ray_jobs.plan import Plan
from ray_jobs.rollout_rows import ROLLOUTS_FILE
from ray_jobs.run_folder import BEST, write_whole
from ray_jobs.tombstones import Targets
from worldmodel.reasons import FORGOTTEN

BLANKED = ("uri", "audio_uri", "caption", "transcript", "actions", "content_sha256", "group")
SHOWS_CLIPS = ("report.html", "continued.png", "checks.json")


@dataclass(frozen=True)
class Trace:
    """One file or folder that may hold traces. count: how many there are. remove: how many went."""

    kind: str
    place: Path
    count: Callable[[Targets], int]
    remove: Callable[[Targets], int]


def manifest_trace(path: Path) -> Trace:
    """Rows of a manifest, and lines of what lies beside it."""

    def beside() -> list[Path]:
        return [
            f
            for f in path.parent.glob(f"{path.name}.*")
            if f.suffix == ".jsonl" and "forgotten" not in f.name
        ]

    def lines_with(file: Path, targets: Targets) -> list[str]:
        uris = {target.uri for target in targets.all if target.uri}
        return [line for line in file.read_text("utf-8").splitlines() if json.loads(line).get("uri") in uris]

    def probes() -> Path:
        return Path(f"{path}.probes")

    def probed(targets: Targets) -> np.ndarray:
        if not probes().is_file():
            return np.zeros(0, dtype=np.int64)
        known = {part for t in targets.all for part in {t.content_sha256, *t.content_sha256.split("+")}}
        hashes = pq.read_table(probes(), columns=["sha256"])["sha256"].to_pylist()
        return np.array([i for i, digest in enumerate(hashes) if digest in known], dtype=np.int64)

    def count(targets: Targets) -> int:
        lines = sum(len(lines_with(file, targets)) for file in beside())
        return len(targets.rows(pq.read_table(path))) + lines + len(probed(targets))

    def remove(targets: Targets) -> int:
        table = pq.read_table(path)
        gone = targets.rows(table)
        _rewrite(path, _without(table, gone))
        for file in beside():
            bad = set(lines_with(file, targets))
            kept = [line for line in file.read_text("utf-8").splitlines() if line not in bad]
            write_whole(file, "".join(f"{line}\n" for line in kept))
        if len(known := probed(targets)):
            _rewrite(probes(), _without(pq.read_table(probes()), known))
        return len(gone)

    return Trace("manifest", path, count, remove)


def plan_trace(path: Path) -> Trace:
    """Samples of a plan. They keep their numbers, or the ledgers of the run would mean other samples."""

    def count(targets: Targets) -> int:
        return len(targets.rows(pq.read_table(path)))

    def remove(targets: Targets) -> int:
        plan = Plan.load(path)
        gone = targets.rows(plan.table)
        if len(gone):
            blanked(plan, gone).save(path)
        return len(gone)

    return Trace("plan", path, count, remove)


def blanked(plan: Plan, sample_ids: np.ndarray) -> Plan:
    """The plan with these samples forgotten: training meets them as clips without content, with a reason."""
    is_gone = np.zeros(plan.num_samples, dtype=bool)
    is_gone[sample_ids] = True
    table, mask = plan.table, pa.array(is_gone)
    for name in (*BLANKED, "forgotten"):
        new: Any = pa.scalar(True) if name == "forgotten" else pa.scalar("")
        column = pc.if_else(mask, new, table[name])
        table = table.set_column(table.column_names.index(name), name, column)
    return replace(plan, table=table, identity=plan.hash)


def cache_trace(folder: Path) -> Trace:
    """Latents of the clips; each file says in its header what it was made from."""
    if "://" in str(folder):
        raise UserError(f"--cache {folder}: only mounted folders are searched; mount the store")

    def hit(targets: Targets) -> Iterator[Path]:
        for file in sorted(folder.rglob("*.safetensors")):
            try:
                with safe_open(file, framework="numpy") as opened:
                    about = opened.metadata() or {}
            except (SafetensorError, OSError):
                continue  # half a file holds nothing that can be read
            content = about.get("content_sha256", "")
            if targets.hit(content, float(about.get("start_s", 0)), float(about.get("end_s", "inf"))):
                yield file

    def remove(targets: Targets) -> int:
        gone = list(hit(targets))
        for file in gone:
            file.unlink(missing_ok=True)
        return len(gone)

    return Trace("cache", folder, lambda targets: sum(1 for _ in hit(targets)), remove)


def rollouts_trace(folder: Path) -> Trace:
    """Held-out clips that a model continued: the rows, the clips as they are and their continuations."""
    listed = folder / ROLLOUTS_FILE

    def hit(targets: Targets) -> list[dict[str, Any]]:
        rows = json.loads(listed.read_text("utf-8")) if listed.is_file() else []
        uris = {target.uri for target in targets.all if target.uri}
        return [row for row in rows if row["source"] in uris]

    def remove(targets: Targets) -> int:
        gone = hit(targets)
        if gone:
            kept = [row for row in json.loads(listed.read_text("utf-8")) if row not in gone]
            for row in gone:
                for file in folder.glob(f"{row['sample_id']:06d}_*"):
                    file.unlink()
            write_whole(listed, json.dumps(kept, indent=1))
            for name in SHOWS_CLIPS:  # they show clips; the command that made the run makes them again
                (folder.parent / name).unlink(missing_ok=True)
        return len(gone)

    return Trace("rollouts", folder, lambda targets: len(hit(targets)), remove)


def ledgers_trace(run: Path) -> Trace:
    """Reasons in ledgers and accounts name the files of quarantined clips."""

    def files() -> list[Path]:
        ledgers = [*run.glob("checkpoints/*/ledger-*.json"), *run.glob(f"{BEST}/ledger-*.json")]
        return [*ledgers, *run.glob("accounting.json")]

    def names(targets: Targets) -> set[str]:
        return {target.uri for target in targets.all if target.uri}

    def count(targets: Targets) -> int:
        return sum(uri in file.read_text("utf-8") for file in files() for uri in names(targets))

    def remove(targets: Targets) -> int:
        changed = 0
        for file in files():
            text = file.read_text("utf-8")
            if any(uri in text for uri in names(targets)):
                write_whole(file, json.dumps(_unnamed(json.loads(text), names(targets))))
                changed += 1
        return changed

    return Trace("ledgers", run, count, remove)


def _unnamed(value: Any, uris: set[str]) -> Any:
    if isinstance(value, dict):
        return {key: _unnamed(inner, uris) for key, inner in value.items()}
    if isinstance(value, list):
        return [_unnamed(inner, uris) for inner in value]
    return FORGOTTEN if isinstance(value, str) and any(uri in value for uri in uris) else value


def _without(table: pa.Table, rows: np.ndarray) -> pa.Table:
    keep = np.ones(table.num_rows, dtype=bool)
    keep[rows] = False
    return table.filter(pa.array(keep))


def _rewrite(path: Path, table: pa.Table) -> None:
    partial = path.with_name(f".{path.name}.partial")
    pq.write_table(table, partial)
    partial.replace(path)
