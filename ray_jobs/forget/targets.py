"""What is to be forgotten, found by id, address or content hash."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

import pyarrow as pa

from ray_jobs.errors import UserError
from ray_jobs.tombstones import Target, Targets

SHORTEST_HASH = 16  # characters; fewer could name another clip


def read_ids(path: Path) -> list[str]:
    """One name a line. UserError for a file that cannot be read or holds none."""
    try:
        lines = path.read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--ids {path}: cannot be read as text: {error}") from None
    ids = list(dict.fromkeys(line.strip() for line in lines if line.strip()))
    if not ids:
        raise UserError(f"--ids {path}: is empty; write an id, address or content hash on each line")
    return ids


def find_targets(ids: Iterable[str], manifest: pa.Table, tombstones: Iterable[Target]) -> Targets:
    """UserError naming every id that neither the manifest nor an earlier forgetting knows."""
    columns = {name: manifest[name].to_pylist() for name in ("id", "uri", "content_sha256")}
    start, end = manifest["start_s"].to_pylist(), manifest["end_s"].to_pylist()
    buried: dict[str, list[Target]] = defaultdict(list)
    for target in tombstones:
        for name in (target.name, target.uri, target.content_sha256):
            buried[name].append(target)
    rows_by_name: dict[str, set[int]] = defaultdict(set)
    for values in columns.values():
        for row, value in enumerate(values):
            rows_by_name[value].add(row)
    found, unknown = list[Target](), list[str]()
    for name in ids:
        rows = rows_by_name.get(name) or _by_prefix(name, columns["content_sha256"])
        for row in sorted(rows):
            content = columns["content_sha256"][row]
            last_s = max(end[row], start[row] + 1e-6)  # a still has no length
            found.append(Target(name, content, start[row], last_s, columns["uri"][row]))
        found += buried.get(name, [])
        if not rows and name not in buried:
            unknown.append(name)
    if unknown:
        raise UserError(
            *(
                f"--ids: {name}: no clip of the manifest has this id, address or content hash"
                for name in unknown
            )
        )
    return Targets(tuple(dict.fromkeys(found)))


def _by_prefix(name: str, contents: list[str]) -> set[int]:
    if len(name) < SHORTEST_HASH:
        return set()
    return {row for row, content in enumerate(contents) if content.startswith(name)}
