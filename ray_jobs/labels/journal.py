"""What a run of `worldmodel label` has made so far, so that one that is broken off loses nothing."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Self, TextIO

from ray_jobs.labels.labeler import Task
from ray_jobs.labels.marks import LeftOut, Made, Outcome


class Journal:
    """Lines of JSON beside the manifest that is written; gone when that is there. `made_with` are the models
    and settings: what others made is not taken over."""

    def __init__(self, path: str, made_with: dict[str, str]) -> None:
        self.path = Path(path)
        self.made_with = json.dumps(made_with, sort_keys=True)
        self.file: TextIO | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.file is not None:
            self.file.close()

    def known(self, tasks: dict[int, Task]) -> dict[int, Outcome]:
        """Outcomes of these tasks from the run before. Failures are tried again."""
        lines = self.path.read_text("utf-8").splitlines() if self.path.is_file() else []
        found: dict[str, Outcome] = {}
        for line in lines:
            try:
                record = json.loads(line)
            except json.JSONDecodeError:
                continue  # the line that was being written when the run was broken off
            found[record["key"]] = {name: _outcome(value) for name, value in record["outcome"].items()}
        known = {i: found[key] for i, task in tasks.items() if (key := self._key(task)) in found}
        return {
            i: outcome for i, outcome in known.items() if not any(_is_failure(f) for f in outcome.values())
        }

    def add(self, task: Task, outcome: Outcome) -> None:
        if self.file is None:
            self.file = self.path.open("a", encoding="utf-8")
            self.file.write("\n")  # a line that was broken off ends here
        record = {"key": self._key(task), "outcome": {name: asdict(value) for name, value in outcome.items()}}
        self.file.write(json.dumps(record, ensure_ascii=False) + "\n")
        self.file.flush()

    def done(self) -> None:
        self.path.unlink(missing_ok=True)

    def _key(self, task: Task) -> str:
        """Of all that the outcome depends on: the clip, its words, what is wanted and with what."""
        told = json.dumps([sorted(task.wanted), task.row, self.made_with], sort_keys=True)
        return hashlib.sha256(told.encode()).hexdigest()[:24]


def _outcome(value: dict[str, object]) -> Made | LeftOut:
    return LeftOut(**value) if "kind" in value else Made(**value)  # pyright: ignore[reportArgumentType]


def _is_failure(found: Made | LeftOut) -> bool:
    return isinstance(found, LeftOut) and found.is_failure
