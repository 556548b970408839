"""Where decoded frames of sound lie on one grid of samples, by stamps that are rounded, noisy or broken."""

from __future__ import annotations

from dataclasses import dataclass, field
from math import gcd

import numpy as np

# N samples, F frames of sound.

STEADY_S = 2e-3  # smaller deviations of a stamp are rounding, not gaps
NOISE_TIMES = 6  # and so are those of a recorder whose stamps are when data arrived
REFERENCE_FRAMES, BEHIND_FRAMES = 9, 5
BLEND_S = 0.02  # steps of a drifting clock up to this are blended, so that they do not click
UNSETTLED_FRAMES = 2  # a decoder may drop a part of the first ones behind a seek


@dataclass
class SampleTrack:
    """Decoded sound of one rate, on one grid of samples that counts from the origin.

    Frames are counted on from the first, because stamps are rounded; where stamps move for good, they win.
    first_sound_s: when the first sample of the file is heard, None where frames are not counted from there.
    tick_s: what stamps are rounded to.
    """

    rate: int
    tick_s: float
    first_sound_s: float | None
    is_from_start: bool = False
    times_s: list[float] = field(default_factory=list)
    counts: list[int] = field(default_factory=list)
    pieces: list[np.ndarray | None] = field(default_factory=list)

    def add(self, time_s: float, num_samples: int, mono_N: np.ndarray | None) -> None:
        """One decoded frame; without its samples where it is only counted."""
        if num_samples:
            self.times_s.append(time_s)
            self.counts.append(num_samples)
            self.pieces.append(mono_N)

    @property
    def late(self) -> float:
        """By which part of a sample, -0.5 to 0.5, the sound lies behind the grid."""
        exact = (self.first_sound_s or 0.0) * self.rate
        return exact - round(exact)

    def laid_out(self, first: int, last: int) -> np.ndarray:
        """The samples [first, last) of the grid, zeros where nothing was decoded."""
        samples_N = np.zeros(last - first, np.float32)
        end, before = None, 0.0
        for start, piece_N in zip(self.starts_F().tolist(), self.pieces, strict=True):
            if piece_N is None:
                continue
            gap = 0 if end is None else start - end
            if end is not None and 0 < gap <= BLEND_S * self.rate:
                _write(samples_N, end - first, np.linspace(before, piece_N[0], gap + 2)[1:-1])
            elif 0 < -gap <= BLEND_S * self.rate:
                piece_N = _blended(samples_N, start - first, piece_N, -gap)
            _write(samples_N, start - first, piece_N)
            end, before = start + len(piece_N), float(piece_N[-1])
        return samples_N

    def starts_F(self) -> np.ndarray:
        """The grid index of the first sample of each frame."""
        counts_F = np.array(self.counts, np.int64)
        before_F = np.cumsum(counts_F) - counts_F
        # each stamp is an opinion on where the whole run of frames begins
        opinions_F = np.array(self.times_s) * self.rate - self.late - before_F
        starts_F = before_F.copy()
        for begin, end in _runs(opinions_F, max(2 * self.tick_s, STEADY_S) * self.rate + 1):
            starts_F[begin:end] += self._run_start(opinions_F[begin:end], counts_F[begin:end], begin == 0)
        return starts_F

    def _run_start(self, opinions_F: np.ndarray, counts_F: np.ndarray, is_first_run: bool) -> int:
        half_tick = self.tick_s * self.rate / 2
        # a stamp lies half a tick from the truth at most, so many of them leave little doubt
        low, high = float(opinions_F.max()) - half_tick, float(opinions_F.min()) + half_tick
        settled = (low + high) / 2 if low <= high + 2 else float(np.median(opinions_F))
        if self.first_sound_s is None or not is_first_run:
            return round(settled)
        known = round(self.first_sound_s * self.rate)
        doubt = 2 * half_tick + 1
        if self.is_from_start and abs(opinions_F[0] - known) <= STEADY_S * self.rate + doubt:
            return known
        # behind a seek, frames of one length are counted from the start of the file, as without it
        length = gcd(*counts_F[UNSETTLED_FRAMES:-1].tolist())
        counted = known + (round((settled - known) / length) * length if length > 2 * doubt else 0)
        return counted if abs(counted - settled) <= doubt else round(settled)


def _runs(opinions_F: np.ndarray, tolerance: float) -> list[tuple[int, int]]:
    """Begin and end of the stretches of frames whose stamps agree."""
    noise = float(np.median(np.abs(np.diff(opinions_F)))) if len(opinions_F) > 1 else 0.0
    reference_frames = 1 if NOISE_TIMES * noise <= tolerance else REFERENCE_FRAMES
    tolerance = max(tolerance, NOISE_TIMES * noise)
    begins = [0]
    reference = np.median(opinions_F[:reference_frames])
    for index in range(1, len(opinions_F)):
        if abs(opinions_F[index] - reference) <= tolerance:
            continue
        if abs(np.median(opinions_F[index : index + BEHIND_FRAMES]) - reference) > tolerance:
            begins.append(index)
            reference = np.median(opinions_F[index : index + reference_frames])
    return list(zip(begins, [*begins[1:], len(opinions_F)], strict=True))


def _blended(samples_N: np.ndarray, start: int, piece_N: np.ndarray, overlap: int) -> np.ndarray:
    """The piece, faded in over what lies there already."""
    length = min(overlap, len(piece_N), max(0, len(samples_N) - start))
    skipped = max(0, -start)
    if skipped >= length:
        return piece_N
    weight_N = np.linspace(0, 1, length + 2)[1:-1][skipped:]
    blended_N = piece_N.copy()
    there_N = samples_N[start + skipped : start + length]
    blended_N[skipped:length] = there_N * (1 - weight_N) + piece_N[skipped:length] * weight_N
    return blended_N


def _write(samples_N: np.ndarray, start: int, piece_N: np.ndarray) -> None:
    begin, end = max(start, 0), min(start + len(piece_N), len(samples_N))
    if begin < end:
        samples_N[begin:end] = piece_N[begin - start : end - start]
