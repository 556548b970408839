"""Spans of content that were taken out of a manifest, kept beside it so that they do not come back."""

from __future__ import annotations

import json
from collections import defaultdict
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa

from ray_jobs.run_folder import write_whole


@dataclass(frozen=True)
class Target:
    """[start_s, end_s) of the bytes that content_sha256 names, wherever they lie. name: as it was given."""

    name: str
    content_sha256: str
    start_s: float
    end_s: float
    uri: str = ""


@dataclass(frozen=True)
class Targets:
    all: tuple[Target, ...]

    def __bool__(self) -> bool:
        return bool(self.all)

    def hit(self, content: str, start_s: float, end_s: float) -> bool:
        """Whether a clip holds any of what is to be forgotten. A picture or sound of two files is hit by
        either."""
        return any(
            start_s < target.end_s and target.start_s < max(end_s, start_s + 1e-9)
            for part in {content, *content.split("+")}
            for target in self._by_content.get(part, ())
        )

    def rows(self, table: pa.Table) -> np.ndarray:
        """Row numbers of a manifest or plan that are hit."""
        contents = table["content_sha256"].to_pylist()
        suspects = [i for i, content in enumerate(contents) if self._knows(content)]
        start, end = table["start_s"].to_numpy(), table["end_s"].to_numpy()
        hit = [i for i in suspects if self.hit(contents[i], float(start[i]), float(end[i]))]
        return np.array(hit, dtype=np.int64)

    def _knows(self, content: str) -> bool:
        return any(part in self._by_content for part in (content, *content.split("+")))

    @cached_property
    def _by_content(self) -> dict[str, list[Target]]:
        found: dict[str, list[Target]] = defaultdict(list)
        for target in self.all:
            for part in {target.content_sha256, *target.content_sha256.split("+")}:
                found[part].append(target)
        return found


def tombstone_file(manifest: str | Path) -> Path:
    return Path(f"{manifest}.forgotten.jsonl")


def read_tombstones(manifest: str | Path) -> list[Target]:
    """What was forgotten of a manifest; the index leaves it out from then on."""
    file = tombstone_file(manifest)
    lines = file.read_text("utf-8").splitlines() if file.is_file() else []
    return [Target(**{k: v for k, v in json.loads(line).items() if k != "at"}) for line in lines]


def bury(manifest: str | Path, targets: Targets) -> None:
    """Written before anything is removed: forgetting that broke off can be started again by the same ids."""
    known = read_tombstones(manifest)
    now = datetime.now(UTC).isoformat(timespec="seconds")
    file = tombstone_file(manifest)
    before = file.read_text("utf-8") if file.is_file() else ""
    new = [json.dumps(asdict(target) | {"at": now}) for target in targets.all if target not in known]
    write_whole(file, before + "".join(line + "\n" for line in new))
