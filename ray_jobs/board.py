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


@ray.remote(num_cpus=0)
class Board:
    def __init__(self) -> None:
        self.news = News()
        self.stop = False
        self.attempts = 0

    def new_attempt(self) -> int:
        """A worker group starts; its number keeps folder names apart."""
        self.attempts += 1
        self.news.attempt = self.attempts
        return self.attempts

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

    def ended(self, outcome: dict[str, Any]) -> None:
        self.news.outcome = outcome

    def collect(self) -> News:
        """Everything since the last call."""
        collected = self.news
        self.news = News(attempt=collected.attempt)
        return collected
