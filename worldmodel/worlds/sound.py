"""Impact sound: each contact is heard as the damped modes of its body's material. Pure numpy."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
import numpy.typing as npt

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
        for ring in rings_of(strike, sample_rate=sample_rate, gain=gain):
            last = min(num_samples, ring.last)
            if ring.first < last:
                since_N = np.arange(ring.first, last) / sample_rate - strike.time_s
                audio_N[ring.first : last] += ring.amplitude * np.imag(np.exp(ring.rotation * since_N))
    return limited(audio_N).astype(np.float32)


class RunningSound:
    """`contact_sound` piece by piece: what still rings is carried over, as one complex number a mode.

    The samples of one mode are the imaginary parts of a number that turns and shrinks by the same factor from
    each to the next, so that a piece costs one product with a table of that factor's powers.
    """

    def __init__(self, *, sample_rate: int, gain: float) -> None:
        self.sample_rate, self.gain, self.now = sample_rate, gain, 0
        self._ringing: list[tuple[Ring, complex]] = []  # and its number at sample `now`, or at its first one

    def add(self, strikes: Sequence[Strike], num_samples: int) -> np.ndarray:
        """The next samples, mono float32 [N]. Strikes lie in them; one that is told late begins with them."""
        end = self.now + num_samples
        for strike in strikes:
            for ring in rings_of(strike, sample_rate=self.sample_rate, gain=self.gain):
                first = max(ring.first, self.now)
                turned = np.exp(ring.rotation * (first / self.sample_rate - strike.time_s))
                self._ringing.append((replace(ring, first=first), complex(ring.amplitude * turned)))
        audio_N, kept = np.zeros(num_samples), []
        for ring, number in self._ringing:
            start, stop = max(ring.first, self.now), min(ring.last, end)
            power_N = _powers(ring.rotation / self.sample_rate, num_samples)
            if start < stop:
                audio_N[start - self.now : stop - self.now] += (
                    number.real * power_N.imag[: stop - start] + number.imag * power_N.real[: stop - start]
                )
            if ring.last > end:
                going_on = number * complex(power_N[end - start]) if start < end else number
                kept.append((ring, going_on))
        self._ringing, self.now = kept, end
        return limited(audio_N).astype(np.float32)


@dataclass(frozen=True)
class Ring:
    """One mode of one strike, samples [first, last): amplitude * Im exp(rotation * time since the strike)."""

    first: int
    last: int
    amplitude: float
    rotation: complex  # 1/s


def rings_of(strike: Strike, *, sample_rate: int, gain: float) -> list[Ring]:
    """Its modes, until nobody hears them."""
    first = max(0, math.ceil(strike.time_s * sample_rate))
    return [
        Ring(
            first,
            first + math.ceil(SILENT_AFTER * decay_s * sample_rate),
            gain * strike.impulse * amplitude,
            complex(-1.0 / decay_s, 2.0 * math.pi * frequency_hz),
        )
        for amplitude, frequency_hz, decay_s in strike.material.modes(sample_rate)
    ]


@lru_cache(maxsize=64)
def _powers(rotation: complex, num_samples: int) -> npt.NDArray[np.complex128]:
    """Of exp(rotation), from the 0th to the num_samples-th: shared, so nobody writes to it."""
    return np.exp(rotation * np.arange(num_samples + 1))


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
