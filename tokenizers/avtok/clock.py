"""Time grids: which frame is shown when, and where decoded samples lie. All in seconds from timestamps."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from math import ceil, floor, gcd

import numpy as np

# N samples, C channels.

MAX_ROUNDING_S = (
    1e-3  # Matroska and FLV stamp in milliseconds; coarser ticks are frame counts and hence exact
)
MAX_GAP_S = 10.0  # a larger jump is a broken clock (spliced transport streams), not a pause


def slack_s(tick_s: Fraction | float) -> float:
    """How far a stamp may lie behind its true time: half a tick for the frame and half for the origin."""
    return min(float(tick_s), MAX_ROUNDING_S) + 1e-6


def frame_grid_s(start_s: float, end_s: float, *, fps: float, context_frames: int = 0) -> np.ndarray:
    """Times of the frames of a cut, its left context first."""
    count = round((end_s - start_s) * fps)
    return start_s + np.arange(-context_frames, count) / fps


@dataclass(frozen=True)
class ResampleSpan:
    """A cut [first, last) on the target grid, inside a source span that starts where both grids coincide.

    Both grids count from the origin, so a cut is resampled with the same filter phases as the whole.
    """

    first: int
    last: int
    source_first: int
    source_last: int
    target_first: int

    @classmethod
    def around(cls, first: int, last: int, *, source_rate: int, rate: int) -> ResampleSpan:
        common = gcd(source_rate, rate)
        up, down = rate // common, source_rate // common
        margin = ceil(32 * max(1.0, rate / source_rate))  # wider than the filter on either side
        first_block, last_block = floor((first - margin) / up), ceil((last + margin) / up)
        return cls(first, last, first_block * down, last_block * down, first_block * up)

    def cut(self, resampled_N: np.ndarray) -> np.ndarray:
        begin = self.first - self.target_first
        return resampled_N[begin : begin + self.last - self.first]


@dataclass
class StreamSpan:
    """First and last presented time of one stream, up to the first broken jump of its clock."""

    first_s: float | None = None
    end_s: float = 0.0
    last_s: float = 0.0
    count: int = 0
    jump: str = ""

    def add(self, time_s: float, duration_s: float) -> None:
        if self.jump:
            return
        if self.first_s is not None and (time_s > self.end_s + MAX_GAP_S or time_s < self.last_s - MAX_GAP_S):
            self.jump = (
                f"timestamps jump from {self.end_s:.3f} s to {time_s:.3f} s; only what comes before is used"
            )
            return
        self.first_s = time_s if self.first_s is None else min(self.first_s, time_s)
        self.last_s = max(self.last_s, time_s) if self.count else time_s
        self.end_s = max(self.end_s, time_s + duration_s) if self.count else time_s + duration_s
        self.count += 1

    @property
    def rate_hz(self) -> float:
        """Mean rate of presentation; containers' own figures lie."""
        spread_s = self.last_s - (self.first_s or 0.0)
        return (self.count - 1) / spread_s if self.count > 1 and spread_s > 0 else 0.0
