"""Where the training workers and the driver meet: progress one way, a stop request the other."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import ray


@dataclass
class News:
    """What happened since the driver last asked."""

    rows: list[dict[str, float]] = field(default_factory=list)
    attempt: int = 0
    outcome: dict[str, Any] | None = None
    failures: list[str] = field(default_factory=list)
    committed_at: list[float] = field(default_factory=list)  # Unix times


class Board:
    """An actor of the driver's; see `start_board`."""

    def __init__(self, attempts: int, plan_is_there: bool) -> None:
        """attempts: worker groups of earlier starts of the run; theirs are numbers that are taken."""
        self.news = News()
        self.plan: bool | None = plan_is_there or None
        self.stop = False
        self.given_up = False
        self.attempts = attempts

    def new_attempt(self) -> int:
        """A worker group starts; its number keeps folder names apart. 0: the job has ended, do not start."""
        if self.given_up:
            return 0
        self.attempts += 1
        self.news.attempt = self.attempts
        return self.attempts

    def plan_is_there(self) -> bool | None:
        """Whether the workers may read the plan; None: not yet, False: it will not come."""
        return self.plan

    def set_plan_is_there(self, there: bool) -> None:
        self.plan = there

    def post(self, row: dict[str, float]) -> bool:
        """A row of metrics; answers whether to stop."""
        self.news.rows.append(row)
        return self.stop

    def stop_requested(self) -> bool:
        return self.stop

    def request_stop(self) -> None:
        self.stop = True

    def failed(self, message: str) -> None:
        self.news.failures.append(message)

    def committed(self, at_s: float) -> None:
        self.news.committed_at.append(at_s)

    def ended(self, outcome: dict[str, Any]) -> None:
        """The first word counts: after a failure other ranks and restarts only meet its consequences."""
        if not self.given_up:
            self.news.outcome = outcome
        self.given_up |= outcome["status"] == "failed"

    def collect(self) -> News:
        """Everything since the last call."""
        collected = self.news
        self.news = News(attempt=collected.attempt)
        return collected


def start_board(attempts: int, *, plan_is_there: bool = True) -> Any:
    """A handle to a new Board actor, which takes no CPU. Workers may start before the plan is there."""
    actor: Any = ray.remote(num_cpus=0)(Board)
    return actor.remote(attempts, plan_is_there)
