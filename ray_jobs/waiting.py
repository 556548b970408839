"""Says why nothing happens when a node has gone and too little is left: Ray waits without a word."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

from ray.exceptions import RayError

from ray_jobs.cluster import fit_problem
from worldmodel.config import RunConfig

QUIET_S = 30.0  # without news, after which the cluster is looked at


class Waiting:
    """Asked in each turn of the driver's loop."""

    def __init__(
        self,
        cfg: RunConfig,
        resources: Callable[[], Mapping[str, float]],
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self.cfg, self.resources, self.now = cfg, resources, now
        self.news_at, self.said = now(), ""

    def note(self, *, has_news: bool) -> str | None:
        """A line for people where the job cannot go on by itself, once for each reason."""
        if has_news:
            self.news_at, self.said = self.now(), ""
        if self.now() - self.news_at < QUIET_S:
            return None
        self.news_at = self.now()
        try:
            problem = fit_problem(self.cfg, self.resources())
        except RayError:  # the head is gone: the board will say so
            return None
        if not problem or problem == self.said:
            return None
        self.said = problem
        what = problem.partition(";")[0]
        return f"waits until nodes are back ({what}); or end it, and start it with a train.workers that fits"
