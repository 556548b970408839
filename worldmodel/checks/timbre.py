"""Which material rings after an onset: the one whose modes explain the most of what is heard."""

from __future__ import annotations

import numpy as np

from worldmodel.checks.onset import detect_onsets
from worldmodel.worlds.sound import MATERIALS

# N samples, F frequencies.

LISTEN_S = 0.120  # long enough to tell 190 Hz from 450 Hz, short enough to end before most next sounds
NEXT_S = 0.040  # an onset closer than this to the next one is not judged
WIDTH = 0.12  # of a mode's frequency, to each side


def heard_materials(audio_N: np.ndarray, *, sample_rate: int, from_s: float = 0.0) -> list[str]:
    """One material per onset at or after `from_s`. What still rings from before is taken off first: the
    spectrum of the moments before the onset is subtracted."""
    onsets_s = detect_onsets(audio_N, sample_rate=sample_rate)
    names = []
    for index, onset_s in enumerate(onsets_s):
        ends_s = min(onset_s + LISTEN_S, *onsets_s[index + 1 : index + 2], len(audio_N) / sample_rate)
        if onset_s < from_s or ends_s - onset_s < NEXT_S:
            continue
        after = audio_N[round(onset_s * sample_rate) : round(ends_s * sample_rate)]
        before = audio_N[max(0, round(onset_s * sample_rate) - len(after)) : round(onset_s * sample_rate)]
        names.append(_likeliest(_spectrum(after, sample_rate) - _spectrum(before, sample_rate)))
    return names


def _spectrum(audio_N: np.ndarray, sample_rate: int) -> np.ndarray:
    """Energy at each whole Hz."""
    window_N = np.hanning(2 * len(audio_N) + 1)[len(audio_N) : -1]  # starts at once, as a strike does
    return np.abs(np.fft.rfft(audio_N * window_N, n=sample_rate)) ** 2


def _likeliest(energy_F: np.ndarray) -> str:
    """The material whose fundamental stands out most against the other fundamentals."""
    energy_F = np.maximum(energy_F, 0.0)

    def strength(frequency_hz: float) -> float:
        return float(
            energy_F[round(frequency_hz * (1 - WIDTH)) : round(frequency_hz * (1 + WIDTH)) + 1].sum()
        )

    return max(MATERIALS, key=lambda name: strength(MATERIALS[name].frequency_hz))
