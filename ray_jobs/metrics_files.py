"""metrics.jsonl and TensorBoard, written by the driver."""

from __future__ import annotations

import json
import logging
from pathlib import Path


class MetricsFiles:
    """Appends rows; a step that was trained again after a restart appears again, and the later row counts."""

    def __init__(self, run: Path) -> None:
        logging.getLogger("tensorboard").setLevel(logging.ERROR)
        from torch.utils.tensorboard import SummaryWriter

        self.file = (run / "metrics.jsonl").open("a", buffering=1)
        self.board = SummaryWriter(str(run / "tensorboard"))

    def write(self, row: dict[str, float]) -> None:
        self.file.write(json.dumps(row) + "\n")
        for name, value in row.items():
            if name not in ("step", "attempt"):
                group = "evaluation" if name.startswith("eval_") else "train"
                self.board.add_scalar(f"{group}/{name}", value, int(row["step"]))

    def close(self) -> None:
        self.file.close()
        self.board.close()
