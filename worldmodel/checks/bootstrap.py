"""Percentile bootstrap: how far a number would move with another draw of episodes."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

# E episodes, R resamples.


def bootstrap_ci(
    values_E: np.ndarray,
    rng: np.random.Generator,
    *,
    statistic: Callable[..., np.ndarray] = np.median,
    resamples: int = 1000,
    level: float = 0.95,
) -> tuple[float, float]:
    """[low, high] of a statistic over episodes; `statistic` takes `axis`. NaN for no episode at all."""
    if len(values_E) == 0:
        return float("nan"), float("nan")
    picks_RE = rng.integers(0, len(values_E), size=(resamples, len(values_E)))
    return _interval(statistic(np.asarray(values_E)[picks_RE], axis=1), level)


def bootstrap_pooled_ci(
    num_episodes: int,
    rng: np.random.Generator,
    *,
    statistic: Callable[[np.ndarray], float],
    resamples: int = 200,
    level: float = 0.95,
) -> tuple[float, float]:
    """The same for a number that pools events: `statistic` gets the indices of the drawn episodes."""
    if num_episodes == 0:
        return float("nan"), float("nan")
    picks_RE = rng.integers(0, num_episodes, size=(resamples, num_episodes))
    return _interval(np.array([statistic(picks_E) for picks_E in picks_RE]), level)


def _interval(samples_R: np.ndarray, level: float) -> tuple[float, float]:
    kept = samples_R[np.isfinite(samples_R)]
    if len(kept) == 0:
        return float("nan"), float("nan")
    low, high = np.quantile(kept, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
