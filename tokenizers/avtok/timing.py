"""What the stamps of two streams say: intervals of frames, the clock of the sound, drift. Without av."""

from __future__ import annotations

from dataclasses import dataclass, field
from heapq import heappop, heappush

MOST_REORDERED = 32  # frames that a codec may hold back; packets come in the order of decoding
LEAST_GAP_S, MOST_GAP_S = 0.012, 0.04  # Vorbis stamps swing by 10 ms where its blocks change length
VFR_TOLERANCE_S = 2.5e-3  # stamps in milliseconds alone make intervals differ by 2 ms


@dataclass
class FrameIntervals:
    """Shortest and longest time between two frames as shown, from stamps in any near order."""

    min_s: float = 0.0
    max_s: float = 0.0
    _held: list[float] = field(default_factory=list)
    _last_s: float | None = None

    def add(self, time_s: float) -> None:
        heappush(self._held, time_s)
        if len(self._held) > MOST_REORDERED:
            self._show(heappop(self._held))

    def finish(self) -> None:
        while self._held:
            self._show(heappop(self._held))

    @property
    def are_variable(self) -> bool:
        return self.max_s - self.min_s > VFR_TOLERANCE_S

    def _show(self, time_s: float) -> None:
        if self._last_s is not None and time_s > self._last_s:
            interval_s = time_s - self._last_s
            self.min_s = min(self.min_s or interval_s, interval_s)
            self.max_s = max(self.max_s, interval_s)
        self._last_s = time_s if self._last_s is None else max(time_s, self._last_s)


@dataclass
class SampleClock:
    """How far the stamps of the sound run ahead of its own sample count over the file.

    Small steps add up to drift; a step of half a frame of sound, either way, is a gap or an overlap, which
    readers place by its stamp.
    """

    drift_s: float = 0.0
    num_gaps: int = 0
    missing_s: float = 0.0  # in gaps
    _next_s: float | None = None

    def add(self, time_s: float, num_samples: int, rate: int) -> None:
        frame_s = num_samples / rate
        if self._next_s is not None:
            step_s = time_s - self._next_s
            if abs(step_s) > min(max(frame_s / 2, LEAST_GAP_S), MOST_GAP_S):
                self.num_gaps += 1
                self.missing_s += max(0.0, step_s)
            else:
                self.drift_s += step_s
        self._next_s = time_s + frame_s


def drift_s(*, start_s: float, end_s: float, clock_s: float) -> float:
    """The most by which sound and picture part over a file, from sound minus picture at both ends.

    A sound that starts late and ends with the picture, or that is shifted as a whole, has not drifted: only
    what is left under the kinder of both readings counts. One that is too long or too short has: its sample
    rate is wrong, or it was stretched.
    """
    return max(abs(clock_s), min(abs(end_s), abs(end_s - start_s)))
