"""RUN/best: the commit with the lowest held-out error, kept beside the last ones.

Its files are hard links, so it takes space of its own only when Ray Train has removed that commit.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

from ray_jobs.errors import storage_problem
from ray_jobs.run_folder import BEST, listed_commits, write_whole

ABOUT = "best.json"
FRESH = f".{BEST}.new"
FORMER = f".{BEST}.former-"  # and the commit that took its place


class BestCommit:
    """Sees the rows of a run, and keeps the best of the commits at whose step an evaluation was."""

    def __init__(self, run: Path) -> None:
        self.run, self.errors, self.problem = run, dict[int, float](), ""
        shutil.rmtree(run / FRESH, ignore_errors=True)
        formers = sorted(run.glob(f"{FORMER}*"))
        if formers and not (run / BEST).exists():  # stopped between two renames
            formers.pop().rename(run / BEST)
        for former in formers:
            shutil.rmtree(former, ignore_errors=True)

    def see(self, row: dict[str, Any]) -> None:
        if errors := [row[name] for name in ("eval_video", "eval_audio") if name in row]:
            self.errors[int(row["step"])] = sum(errors)

    def keep(self) -> bool:
        """Call now and then: only what Ray Train has entered into its list counts. False from the time on
        when the storage fails or is full; `problem` says why."""
        try:
            if not self.problem:
                self._keep()
        except Exception as error:  # shutil gathers what it met in an error of its own
            self.problem = storage_problem(error)
            if not self.problem:
                raise
        return not self.problem

    def _keep(self) -> None:
        for commit in listed_commits(self.run):
            error = self.errors.pop(int(commit.name.split("-")[1]), None)
            if error is not None and error < best_error(self.run):
                self._take(commit, error)

    def _take(self, commit: Path, error: float) -> None:
        fresh = self.run / FRESH
        shutil.rmtree(fresh, ignore_errors=True)
        try:
            shutil.copytree(commit, fresh, copy_function=_link)
        except (FileNotFoundError, shutil.Error):
            shutil.rmtree(fresh, ignore_errors=True)
            if commit in listed_commits(self.run):
                raise
            return  # Ray Train takes it off its list, and then removes it
        about = {"commit": commit.name, "held_out_error": error}
        write_whole(fresh / ABOUT, json.dumps(about))
        # A name of its own: where a reader has its files open, the one before may not be gone yet.
        former = self.run / f"{FORMER}{commit.name}"
        if (self.run / BEST).exists():
            (self.run / BEST).rename(former)
        fresh.rename(self.run / BEST)
        shutil.rmtree(former, ignore_errors=True)


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
