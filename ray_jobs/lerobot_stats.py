"""Statistics of a LeRobot data set, gathered row by row: memory is that of one episode's numbers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

# N rows, D values a row.

QUANTILES = {"q01": 0.01, "q10": 0.10, "q50": 0.50, "q90": 0.90, "q99": 0.99}
PICTURE_SIDE_PX = 150  # pictures are thinned to about this before they are counted, as LeRobot does


@dataclass(eq=False)
class Moments:
    """Count, least, most, sum and sum of squares, [D] each. Quantiles are means over parts by count."""

    count: int
    least_D: np.ndarray
    most_D: np.ndarray
    sum_D: np.ndarray
    square_D: np.ndarray
    weighted_quantiles: dict[str, np.ndarray]

    @classmethod
    def of(cls, rows_ND: np.ndarray, *, quantiles: bool = False) -> Moments:
        rows_ND = rows_ND.astype(np.float64)
        asked = QUANTILES if quantiles else {}
        return cls(
            len(rows_ND),
            rows_ND.min(0),
            rows_ND.max(0),
            rows_ND.sum(0),
            np.square(rows_ND).sum(0),
            {name: len(rows_ND) * np.quantile(rows_ND, at, axis=0) for name, at in asked.items()},
        )

    def plus(self, other: Moments) -> Moments:
        return Moments(
            self.count + other.count,
            np.minimum(self.least_D, other.least_D),
            np.maximum(self.most_D, other.most_D),
            self.sum_D + other.sum_D,
            self.square_D + other.square_D,
            {
                name: value_D + other.weighted_quantiles[name]
                for name, value_D in self.weighted_quantiles.items()
            },
        )

    def listed(self, shape: tuple[int, ...], count: int | None = None) -> dict[str, Any]:
        """As LeRobot lists them, each in `shape`; `count` where a row is not a frame."""
        mean_D = self.sum_D / self.count
        spread_D = np.sqrt(np.maximum(self.square_D / self.count - np.square(mean_D), 0))
        values = {"min": self.least_D, "max": self.most_D, "mean": mean_D, "std": spread_D}
        values |= {name: value_D / self.count for name, value_D in self.weighted_quantiles.items()}
        return {name: value_D.reshape(shape).tolist() for name, value_D in values.items()} | {
            "count": [self.count if count is None else count]
        }


def picture_moments(video_THWC: np.ndarray) -> Moments:
    """Of the three colours in [0, 1], over thinned pictures."""
    step = max(1, min(video_THWC.shape[1:3]) // PICTURE_SIDE_PX)
    return Moments.of(video_THWC[:, ::step, ::step].reshape(-1, 3) / 255)
