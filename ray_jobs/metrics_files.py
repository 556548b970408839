"""metrics.jsonl and TensorBoard, written by the driver."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path

from ray_jobs.errors import storage_problem


class MetricsFiles:
    """Appends rows; a step that was trained again after a restart appears again, and the later row counts."""

    def __init__(self, run: Path) -> None:
        logging.getLogger("tensorboard").setLevel(logging.ERROR)
        from torch.utils.tensorboard import SummaryWriter

        drop_cut_line(run / "metrics.jsonl")
        self.file = (run / "metrics.jsonl").open("a", buffering=1)
        self.board = SummaryWriter(str(run / "tensorboard"))
        self.problem = ""

    def write(self, row: dict[str, float]) -> bool:
        """False from the row on that could not be written; `problem` says why."""
        if not self.problem:
            self._try(lambda: self._write(row))
        return not self.problem

    def close(self) -> None:
        self._try(self.file.close)
        self._try(self.board.close)

    def _write(self, row: dict[str, float]) -> None:
        self.file.write(json.dumps(row) + "\n")
        for name, value in row.items():
            if name not in ("step", "attempt"):
                group = "evaluation" if name.startswith("eval_") else "train"
                self.board.add_scalar(f"{group}/{name}", value, int(row["step"]))

    def _try(self, write: Callable[[], None]) -> None:
        try:
            write()
        except OSError as error:
            self.problem = storage_problem(error)
            if not self.problem:
                raise


def drop_cut_line(path: Path) -> None:
    """What a full disk or a kill left of a row; the next one would be glued to it."""
    if not path.exists():
        return
    with path.open("rb+") as file:
        content = file.read()
        file.truncate(content.rfind(b"\n") + 1)
