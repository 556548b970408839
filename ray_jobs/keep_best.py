"""RUN/best: the commit with the lowest held-out error, kept beside the last ones.

Its files are hard links, so it takes space of its own only when Ray Train has removed that commit.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

from ray_jobs.run_folder import BEST, listed_commits, write_whole

ABOUT = "best.json"


class BestCommit:
    """Sees the rows of a run, and keeps the best of the commits at whose step an evaluation was."""

    def __init__(self, run: Path) -> None:
        self.run, self.errors = run, dict[int, float]()
        if not (run / BEST).exists() and self._former.exists():
            self._former.rename(run / BEST)  # stopped between two renames

    def see(self, row: dict[str, Any]) -> None:
        if errors := [row[name] for name in ("eval_video", "eval_audio") if name in row]:
            self.errors[int(row["step"])] = sum(errors)

    def keep(self) -> None:
        """Call now and then: only what Ray Train has entered into its list counts."""
        for commit in listed_commits(self.run):
            error = self.errors.pop(int(commit.name.split("-")[1]), None)
            if error is not None and error < best_error(self.run):
                self._take(commit, error)

    def _take(self, commit: Path, error: float) -> None:
        fresh = self.run / f".{BEST}.new"
        shutil.rmtree(fresh, ignore_errors=True)
        shutil.copytree(commit, fresh, copy_function=_link)
        about = {"commit": commit.name, "held_out_error": error}
        write_whole(fresh / ABOUT, json.dumps(about))
        if (self.run / BEST).exists():
            (self.run / BEST).rename(self._former)
        fresh.rename(self.run / BEST)
        shutil.rmtree(self._former, ignore_errors=True)

    @property
    def _former(self) -> Path:
        return self.run / f".{BEST}.former"


def best_error(run: Path) -> float:
    """Of the commit in RUN/best; infinite where there is none."""
    try:
        return float(json.loads((run / BEST / ABOUT).read_text())["held_out_error"])
    except FileNotFoundError:
        return float("inf")


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:  # a file system without links
        shutil.copy2(source, target)
