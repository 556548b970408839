"""The pause between two turns of Ray Data's scheduling loop."""

from __future__ import annotations

from typing import Any, cast

import pytest
from ray.data import DataContext

from ray_jobs import paced_executor
from ray_jobs.paced_executor import TURN_S, PacedExecutor

NO_EXECUTOR = cast(Any, None)  # it is not looked at


class Clock:
    """Stands for the time module; only sleeping takes time."""

    def __init__(self) -> None:
        self.now_s, self.slept_s = 100.0, 0.0

    def monotonic(self) -> float:
        return self.now_s

    def sleep(self, seconds: float) -> None:
        self.now_s += seconds
        self.slept_s += seconds


def test_a_loop_that_spins_is_held_to_its_pace_and_one_that_waited_is_not(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(paced_executor, "time", clock)
    pace = PacedExecutor()
    for _ in range(11):  # the first turn is free
        pace.on_execution_step(NO_EXECUTOR)
    assert clock.slept_s == pytest.approx(10 * TURN_S)
    clock.now_s += 2 * TURN_S
    pace.on_execution_step(NO_EXECUTOR)
    assert clock.slept_s == pytest.approx(10 * TURN_S)


def test_ray_data_still_takes_callbacks_where_the_stream_gives_them():
    assert "custom_execution_callback_classes" in DataContext.get_current().__dataclass_fields__
