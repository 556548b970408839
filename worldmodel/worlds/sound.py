"""Impact sound: each contact is heard as the damped modes of its body's material. Pure numpy."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

# N samples, M modes of one material.

MODE_RATIOS = (1.0, 2.76, 5.4)  # the first bending modes of a free bar
MODE_DECAYS_S = (0.040, 0.020, 0.008)  # time to 1/e, before the material's own scale
MODE_AMPLITUDES = (1.0, 0.5, 0.25)
SILENT_AFTER = 12.0  # time constants of the slowest mode: exp(-12) is a fifth of one 16-bit step
PEAK = 0.95


@dataclass(frozen=True)
class Material:
    """What a body is made of: how it sounds, what it weighs (1 is water's part here) and its usual colour."""

    name: str
    adjective: str
    frequency_hz: float
    decay_scale: float
    density: float
    color: str

    def modes(self, sample_rate: int) -> list[tuple[float, float, float]]:
        """(amplitude, frequency in Hz, time to 1/e in s) of modes below 0.45 of the sample rate."""
        return [
            (amplitude, self.frequency_hz * ratio, decay_s * self.decay_scale)
            for amplitude, ratio, decay_s in zip(MODE_AMPLITUDES, MODE_RATIOS, MODE_DECAYS_S, strict=True)
            if self.frequency_hz * ratio < 0.45 * sample_rate
        ]


MATERIALS: dict[str, Material] = {
    material.name: material
    for material in (
        Material("wood", "wooden", 450.0, 0.7, 0.7, "orange"),
        Material("glass", "glass", 1300.0, 1.6, 1.2, "green"),
        Material("steel", "steel", 850.0, 2.5, 1.8, "blue"),
        Material("rubber", "rubber", 190.0, 1.0, 1.0, "red"),
    )
}


@dataclass(frozen=True)
class Strike:
    """One body that rings: impulse in standard balls times box widths/s."""

    time_s: float
    impulse: float
    material: Material


def contact_sound(
    strikes: Sequence[Strike], *, num_samples: int, sample_rate: int, gain: float
) -> np.ndarray:
    """Mono float32 [N]: sum over strikes of gain * impulse * sum over modes of a sin(2 pi f u) exp(-u / d).

    u is the time since the strike, which starts between two samples, where it happened. What coincidence
    would drive past full scale is bent back by `limited`.
    """
    audio_N = np.zeros(num_samples)
    for strike in strikes:
        first = max(0, math.ceil(strike.time_s * sample_rate))
        for amplitude, frequency_hz, decay_s in strike.material.modes(sample_rate):
            last = min(num_samples, first + math.ceil(SILENT_AFTER * decay_s * sample_rate))
            if first < last:
                since_N = np.arange(first, last) / sample_rate - strike.time_s
                rotation = complex(-1.0 / decay_s, 2.0 * math.pi * frequency_hz)
                audio_N[first:last] += (gain * strike.impulse * amplitude) * np.imag(
                    np.exp(rotation * since_N)
                )
    return limited(audio_N).astype(np.float32)


def limited(audio_N: np.ndarray) -> np.ndarray:
    """The same samples up to PEAK; beyond it they approach 1. Several heavy bodies at once may get there."""
    beyond_N = np.maximum(np.abs(audio_N) - PEAK, 0.0) / (1.0 - PEAK)
    bent_N = PEAK + (1.0 - PEAK) * np.tanh(beyond_N)
    return np.where(beyond_N > 0, np.sign(audio_N) * bent_N, audio_N)


def safe_gain(materials: Sequence[Material], *, largest_impulse: float, shortest_interval_s: float) -> float:
    """The one gain of a world at which no clip of one body exceeds PEAK.

    Two perpendicular walls may be hit at once, together with sqrt(2) of `largest_impulse`; a wall and its
    opposite are never hit within `shortest_interval_s`, so earlier contacts add a geometric series at most.
    """
    slowest_s = max(MODE_DECAYS_S) * max(material.decay_scale for material in materials)
    ringing_on = 1.0 / (1.0 - math.exp(-shortest_interval_s / slowest_s))
    return PEAK / (math.sqrt(2.0) * largest_impulse * sum(MODE_AMPLITUDES) * ringing_on)
