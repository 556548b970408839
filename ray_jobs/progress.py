"""Progress of long work, on standard error: bars on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

LINE_EVERY_S = 15.0
RATED = ("tokenize",)
WORDS = {
    "start": "starting Ray",
    "render": "rendering clips",
    "index": "probing clips",
    "look": "looking at clips",
    "page": "drawing clips",
    "label": "labelling clips",
    "tokenize": "encoding clips",
    "codec": "training the codec",
    "workers": "starting training workers",
    "train": "training",
    "rollout": "continuing clips",
    "generate": "making chunks",
    "check": "checking",
    "report": "writing the report",
    "stopping": "stopping: committing first (Ctrl-C again gives up at once)",
}


class ProgressDisplay:
    """Called with (stage, info); info has done and total, or a row of metrics with step and total. What is
    `said`, a note, stays on the screen."""

    def __init__(self) -> None:
        self.console = Console(stderr=True)
        self.terminal = sys.stderr.isatty()
        self.bars = Progress(
            TextColumn("[bold]{task.description:<26}"),
            BarColumn(bar_width=28),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[note]}"),
            console=self.console,
        )
        self.tasks: dict[str, Any] = {}
        self.said: dict[str, float] = {}
        self.began_s: dict[str, float] = {}
        self.step_s = 0.0

    def __enter__(self) -> ProgressDisplay:
        if self.terminal:
            self.bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.terminal:
            self.bars.stop()

    def __call__(self, stage: str, info: dict[str, Any]) -> None:
        if stage == "train" and "loss" not in info:
            return  # rows of an evaluation
        if stage == "said":
            self.console.print(info["note"], highlight=False, soft_wrap=True)
            return
        done = int(info["step"]) + 1 if stage == "train" else info.get("done")
        note = self._training_note(info) if stage == "train" else info.get("note", "")
        note = note or self._rate_note(stage, done, info.get("total"))
        if self.terminal:
            self._bar(stage, done, info.get("total"), note)
        else:
            self._line(stage, done, info.get("total"), note)

    def _bar(self, stage: str, done: int | None, total: int | None, note: str) -> None:
        if stage not in self.tasks:
            self.tasks[stage] = self.bars.add_task(WORDS.get(stage, stage), total=total, note="")
        self.bars.update(self.tasks[stage], completed=done or 0, total=total, note=note)

    def _line(self, stage: str, done: int | None, total: int | None, note: str) -> None:
        now, last = time.monotonic(), self.said.get(stage)
        if last is not None and now - last < LINE_EVERY_S and done != total:
            return
        self.said[stage] = now
        count = f" {done}/{total}" if done is not None and total is not None else ""
        self.console.print(
            f"{WORDS.get(stage, stage)}{count} {note}".rstrip(), highlight=False, soft_wrap=True
        )

    def _rate_note(self, stage: str, done: int | None, total: int | None) -> str:
        """How fast clips become latents, and how long the rest takes."""
        if stage not in RATED or not done or not total:
            return ""
        began_s = self.began_s.setdefault(stage, time.monotonic())
        per_s = (done - 1) / max(1e-9, time.monotonic() - began_s)  # the first one waited for the actors
        return f"{per_s:.1f} clips/s  {_clock((total - done) / per_s)} left" if done > 1 else ""

    def _training_note(self, row: dict[str, Any]) -> str:
        self.step_s = row["step_s"] if not self.step_s else 0.9 * self.step_s + 0.1 * row["step_s"]
        left_s = max(0.0, (row["total"] - row["step"] - 1) * self.step_s)
        used = f"MFU {row['mfu']:.0%}  " if "mfu" in row else ""
        return (
            f"loss {row['loss']:.3f}  {row['tokens_per_s']:.0f} tokens/s  {used}"
            f"stall {row['stall_fraction']:.0%}  {_clock(left_s)} left"
        )


def _clock(seconds: float) -> str:
    return f"{int(seconds // 60)}:{int(seconds % 60):02d}"
