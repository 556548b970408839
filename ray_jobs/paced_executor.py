"""Keeps the scheduling loop of Ray Data from spinning.

While the stream is full, which is most of the time, finished tasks that are held back count as ready and
`ray.wait` returns at once: the loop turns hundreds of times a second. It runs as a thread of the training
worker, where it took four of five turns at the GIL and made a step three times as long.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from ray.data._internal.execution.execution_callback import ExecutionCallback

if TYPE_CHECKING:
    from ray.data._internal.execution.streaming_executor import StreamingExecutor

TURN_S = 0.05  # against about a second that a decode task takes


class PacedExecutor(ExecutionCallback):
    """At most one turn of the loop in TURN_S; a turn that waited for a task anyway is not held up."""

    def __init__(self) -> None:
        self.last = 0.0

    def on_execution_step(self, executor: StreamingExecutor) -> None:
        pause_s = self.last + TURN_S - time.monotonic()
        if pause_s > 0:
            time.sleep(pause_s)
        self.last = time.monotonic()
