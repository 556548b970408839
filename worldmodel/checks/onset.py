"""When something is heard, when something is seen to bounce, and how far apart the two are."""

from __future__ import annotations

import numpy as np

# N samples, T frames, 2 = (x, y), M onsets, C contacts.

RISE_DB = 6.0
WINDOW_S = 0.010  # two windows side by side; short enough for 1 ms, long enough for a period of 100 Hz
HOP_S = 0.001
SEPARATION_S = 0.030  # onsets closer than this are one
FLOOR_DBFS = -55.0  # quieter than this is silence: it neither fires nor counts as a rise
LAG_WINDOW_S = 0.250
MATCH_S = 0.050


def detect_onsets(audio_N: np.ndarray, *, sample_rate: int, floor_dbfs: float = FLOOR_DBFS) -> np.ndarray:
    """Times in seconds where the energy of the next 10 ms exceeds that of the last 10 ms by more than 6 dB.

    The floor is added to both energies, so silence and quiet noise cannot fire. Each time is refined to the
    sample with the largest difference of the two, which is exact for a sound that starts at once and decays.
    """
    window = max(1, round(WINDOW_S * sample_rate))
    floor = 10 ** (floor_dbfs / 10)
    energy_N = np.concatenate([np.zeros(window), np.square(audio_N, dtype=np.float64), np.zeros(window)])
    total = np.concatenate([[0.0], np.cumsum(energy_N)])
    before_N = np.maximum(total[window : -window - 1] - total[: -2 * window - 1], 0) / window
    after_N = np.maximum(total[2 * window :][:-1] - total[window : -window - 1], 0) / window
    rise_N = 10 * np.log10((after_N + floor) / (before_N + floor))

    hop = max(1, round(HOP_S * sample_rate))
    grid = np.arange(0, len(rise_N), hop)
    candidates = grid[rise_N[grid] > RISE_DB]
    times: list[float] = []
    steepest_first = candidates[np.argsort(-rise_N[candidates], kind="stable")]
    for index in steepest_first:  # each claims its surroundings
        low, high = max(0, index - window), min(len(rise_N), index + window + 1)
        step = (after_N - before_N)[low:high]
        refined = low + int(np.flatnonzero(step >= 0.98 * step.max())[-1])  # a click fits at many places
        if all(abs(refined / sample_rate - time) >= SEPARATION_S for time in times):
            times.append(refined / sample_rate)
    return np.sort(np.array(times))


def contacts_from_track(positions_T2: np.ndarray, *, fps: float, min_change: float = 0.2) -> np.ndarray:
    """Times in seconds of bounces off axis-aligned walls, between frames.

    On each axis, straight lines are fitted to up to three frames before and after every frame interval. Where
    the slope changes sign and by more than `min_change` box widths/s, the two lines meet at the contact.
    """
    times = [time for axis in range(2) for time in _kinks(positions_T2[:, axis], min_change / fps)]
    return merge_close(np.array(times) / fps)


def merge_close(times_s: np.ndarray) -> np.ndarray:
    """Sorted times without those that follow another by less than 30 ms: they are heard as one."""
    kept: list[float] = []
    for time in np.sort(times_s):
        if not kept or time - kept[-1] >= SEPARATION_S:
            kept.append(float(time))
    return np.array(kept)


def _kinks(x_T: np.ndarray, min_change: float) -> list[float]:
    """Frame times (fractional) at which one coordinate turns back."""
    found: list[tuple[float, float]] = []  # (change of slope, time)
    for last in range(1, len(x_T) - 2):  # the contact lies between frames `last` and `last + 1`
        before, after = np.arange(max(0, last - 2), last + 1), np.arange(last + 1, min(len(x_T), last + 4))
        if not np.isfinite(x_T[[*before, *after]]).all():
            continue
        slope_1, offset_1 = np.polyfit(before, x_T[before], 1)
        slope_2, offset_2 = np.polyfit(after, x_T[after], 1)
        if slope_1 * slope_2 >= 0 or abs(slope_2 - slope_1) < min_change:
            continue
        time = (offset_2 - offset_1) / (slope_1 - slope_2)
        if last - 0.5 <= time <= last + 1.5:
            found.append((abs(slope_2 - slope_1), float(time)))
    kept: list[float] = []
    for _, time in sorted(
        found, reverse=True
    ):  # the sharpest kink wins; a mixed interval beside it is less sharp
        if all(abs(time - other) >= 2 for other in kept):
            kept.append(time)
    return kept


def nearest_lags_s(contacts_C: np.ndarray, onsets_M: np.ndarray) -> np.ndarray:
    """Per contact, nearest onset minus contact: positive is late, NaN if nothing is heard in 250 ms."""
    if len(contacts_C) == 0 or len(onsets_M) == 0:
        return np.full(len(contacts_C), np.nan)
    difference_CM = onsets_M[None, :] - contacts_C[:, None]
    lag_C = difference_CM[np.arange(len(contacts_C)), np.abs(difference_CM).argmin(axis=1)]
    return np.where(np.abs(lag_C) <= LAG_WINDOW_S, lag_C, np.nan)


def pairwise_lags_s(contacts_C: np.ndarray, onsets_M: np.ndarray) -> np.ndarray:
    """Every onset minus every contact within 250 ms: a constant delay piles up, chance does not."""
    difference = (onsets_M[None, :] - contacts_C[:, None]).ravel()
    return difference[np.abs(difference) <= LAG_WINDOW_S]


def mode_lag_s(differences_s: np.ndarray, *, width_s: float = 0.010) -> float:
    """Mode of the pooled differences by a Gaussian kernel; NaN for none."""
    if len(differences_s) == 0:
        return float("nan")
    grid = np.arange(-LAG_WINDOW_S, LAG_WINDOW_S + 1e-9, 0.001)
    density = np.exp(-0.5 * ((grid[:, None] - differences_s) / width_s) ** 2).sum(axis=1)
    return float(grid[int(density.argmax())])


def match_counts(
    onsets_M: np.ndarray, contacts_C: np.ndarray, *, within_s: float = MATCH_S
) -> tuple[int, int, int]:
    """(hits, extra onsets, missed contacts) of a one-to-one matching, closest pairs first."""
    difference_MC = np.abs(onsets_M[:, None] - contacts_C[None, :])
    hits = 0
    while difference_MC.size and difference_MC.min() <= within_s:
        onset, contact = np.unravel_index(difference_MC.argmin(), difference_MC.shape)
        difference_MC[onset, :] = difference_MC[:, contact] = np.inf
        hits += 1
    return hits, len(onsets_M) - hits, len(contacts_C) - hits


def f1(hits: float, extra: float, missed: float) -> float:
    """2 hits / (2 hits + extra + missed); NaN where there was nothing to hear and nothing heard."""
    total = 2 * hits + extra + missed
    return float(2 * hits / total) if total else float("nan")
