"""Differences of runs that share their seed, with the interval that so few of them allow."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

# 97.5 % quantiles of Student's t by degrees of freedom, 1 to 10; beyond them the normal's is near enough.
T_975 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228)


@dataclass(frozen=True)
class Interval:
    """A mean with its 95 % interval; the interval is infinite for a single value."""

    mean: float
    low: float
    high: float
    n: int

    @property
    def excludes_zero(self) -> bool:
        return self.low > 0 or self.high < 0


def interval(values: Sequence[float]) -> Interval:
    """Of the mean of independent values, by Student's t. ValueError for none."""
    x = np.asarray(values, dtype=float)
    if not len(x):
        raise ValueError("an interval needs at least one value")
    mean = float(x.mean())
    if len(x) == 1:
        return Interval(mean, -math.inf, math.inf, 1)
    quantile = T_975[len(x) - 2] if len(x) - 2 < len(T_975) else 1.96
    half = quantile * float(x.std(ddof=1)) / math.sqrt(len(x))
    return Interval(mean, mean - half, mean + half, len(x))


def paired(ours: dict[int, float], theirs: dict[int, float]) -> Interval | None:
    """Of ours minus theirs over the seeds that both have and where both are numbers; None without any."""
    seeds = [s for s in ours.keys() & theirs.keys() if math.isfinite(ours[s]) and math.isfinite(theirs[s])]
    return interval([ours[s] - theirs[s] for s in sorted(seeds)]) if seeds else None
