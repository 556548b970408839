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
    """What a body is made of: how it sounds and looks."""

    name: str
    caption: str
    frequency_hz: float
    decay_scale: float
    color: tuple[int, int, int]


MATERIALS: dict[str, Material] = {
    material.name: material
    for material in (
        Material("wood", "a wooden ball bounces", 450.0, 0.7, (240, 138, 36)),
        Material("glass", "a glass ball bounces", 1300.0, 1.6, (32, 214, 178)),
        Material("steel", "a steel ball bounces", 850.0, 2.5, (72, 128, 255)),
        Material("rubber", "a rubber ball bounces", 190.0, 1.0, (238, 52, 84)),
    )
}


def contact_sound(
    contacts: Sequence[tuple[float, float]],
    material: Material,
    *,
    num_samples: int,
    sample_rate: int,
    gain: float,
) -> np.ndarray:
    """Mono float32 [N] of (time_s, impulse) contacts: gain * impulse * sum a sin(2 pi f u) exp(-u / d).

    u is the time since the contact, which starts between two samples, where it happened; modes above 0.45 of
    the sample rate are left out.
    """
    audio_N = np.zeros(num_samples)
    modes = [
        (amplitude, material.frequency_hz * ratio, decay_s * material.decay_scale)
        for amplitude, ratio, decay_s in zip(MODE_AMPLITUDES, MODE_RATIOS, MODE_DECAYS_S, strict=True)
        if material.frequency_hz * ratio < 0.45 * sample_rate
    ]
    for time_s, impulse in contacts:
        first = max(0, math.ceil(time_s * sample_rate))
        for amplitude, frequency_hz, decay_s in modes:
            last = min(num_samples, first + math.ceil(SILENT_AFTER * decay_s * sample_rate))
            if first < last:
                since_N = np.arange(first, last) / sample_rate - time_s
                rotation = complex(-1.0 / decay_s, 2.0 * math.pi * frequency_hz)
                audio_N[first:last] += (gain * impulse * amplitude) * np.imag(np.exp(rotation * since_N))
    return audio_N.astype(np.float32)


def safe_gain(materials: Sequence[Material], *, largest_impulse: float, shortest_interval_s: float) -> float:
    """The one gain of a world at which no clip exceeds PEAK.

    Two perpendicular walls may be hit at once, together with sqrt(2) of `largest_impulse`; a wall and its
    opposite are never hit within `shortest_interval_s`, so earlier contacts add a geometric series at most.
    """
    slowest_s = max(MODE_DECAYS_S) * max(material.decay_scale for material in materials)
    ringing_on = 1.0 / (1.0 - math.exp(-shortest_interval_s / slowest_s))
    return PEAK / (math.sqrt(2.0) * largest_impulse * sum(MODE_AMPLITUDES) * ringing_on)
