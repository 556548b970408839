"""Impact sound: it starts when the contact happens, rings at its material's pitch, and never clips."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest

from worldmodel.worlds.bounce import BounceSettings, simulate
from worldmodel.worlds.sound import MATERIALS, MODE_RATIOS, PEAK, Strike, contact_sound, limited

RATE = 16000


def struck(name: str, *contacts: tuple[float, float], rate: int = RATE) -> np.ndarray:
    strikes = [Strike(time_s, impulse, MATERIALS[name]) for time_s, impulse in contacts]
    return contact_sound(strikes, num_samples=rate, sample_rate=rate, gain=0.3)


@pytest.mark.parametrize("name", MATERIALS)
@pytest.mark.parametrize("time_s", [0.25, 0.2500291, 0.31337])
def test_sound_starts_within_one_sample_after_the_contact(name: str, time_s: float):
    first = int(np.flatnonzero(struck(name, (time_s, 1.0)))[0])
    assert 0 <= first / RATE - time_s <= 1.001 / RATE


def test_a_contact_between_samples_sounds_as_the_same_contact_sampled_finer():
    time_s = 0.2 + 0.37 / RATE
    fine = struck("wood", (time_s, 1.0), rate=10 * RATE)
    assert np.allclose(struck("wood", (time_s, 1.0)), fine[::10], atol=1e-6)


@pytest.mark.parametrize("name", MATERIALS)
def test_the_loudest_pitches_are_the_materials_modes(name: str):
    material = MATERIALS[name]
    spectrum = np.abs(np.fft.rfft(struck(name, (0.1, 1.0)), n=4 * RATE))
    for ratio in MODE_RATIOS[:2]:
        mode_hz = material.frequency_hz * ratio
        near = np.arange(int(mode_hz * 0.85 * 4), int(mode_hz * 1.15 * 4))
        peak_hz = near[spectrum[near].argmax()] / 4
        assert peak_hz == pytest.approx(mode_hz, rel=0.03)


def test_pitches_of_any_two_materials_differ_by_a_fifth():
    pitches = sorted(material.frequency_hz for material in MATERIALS.values())
    assert min(high / low for low, high in pairwise(pitches)) >= 1.5


def test_loudness_is_proportional_to_impulse():
    assert np.allclose(struck("steel", (0.1, 0.8)), 4 * struck("steel", (0.1, 0.2)), atol=1e-6)


def test_contacts_add_up():
    both = struck("glass", (0.1, 1.0), (0.15, 0.5))
    assert np.allclose(both, struck("glass", (0.1, 1.0)) + struck("glass", (0.15, 0.5)), atol=1e-6)


def test_silence_before_the_first_contact_and_where_none_is():
    assert not struck("rubber").any()
    assert not struck("rubber", (0.5, 1.0))[: RATE // 2].any()


def test_modes_above_the_sample_rates_reach_are_left_out():
    low = struck("glass", (0.1, 1.0), rate=4000)
    spectrum = np.abs(np.fft.rfft(low))
    assert spectrum[1250:1350].max() > 20 * spectrum[300:500].max()  # 2.76 f would alias to 412 Hz


def test_an_episodes_sound_starts_at_its_first_contact():
    for seed in range(12):
        episode = simulate(BounceSettings(), seed=seed, duration_s=4.0)
        first_s = float(np.flatnonzero(episode.audio_N)[0]) / RATE
        assert 0 <= first_s - episode.truth.contacts[0].time_s <= 1.001 / RATE


def test_no_clip_reaches_full_scale():
    peaks = [
        np.abs(simulate(BounceSettings(), seed=seed, duration_s=4.0).audio_N).max() for seed in range(40)
    ]
    assert 0.2 < max(peaks) <= PEAK


def test_the_loudest_corner_hit_of_the_most_resonant_body_stays_below_full_scale():
    settings = BounceSettings(speed=(1.0, 1.0), radius=(0.14, 0.14))
    into_each_wall = 2 * settings.speed[1] / np.sqrt(2)
    between_s = (1 - 2 * 0.14) / settings.speed[1]
    contacts = [(0.1 + bounce * between_s, into_each_wall) for bounce in range(6) for _wall in range(2)]
    for material in MATERIALS.values():
        strikes = [Strike(time_s, impulse, material) for time_s, impulse in contacts]
        audio_N = contact_sound(strikes, num_samples=6 * RATE, sample_rate=RATE, gain=settings.gain)
        assert np.abs(audio_N).max() <= PEAK


def test_a_faster_world_is_turned_down_rather_than_clipped():
    fast = replace(BounceSettings(), speed=(3.0, 3.0))
    peaks = [np.abs(simulate(fast, seed=seed, duration_s=4.0).audio_N).max() for seed in range(10)]
    assert max(peaks) <= PEAK


def test_the_limiter_changes_nothing_below_the_peak_and_never_reaches_full_scale():
    quiet = np.linspace(-PEAK, PEAK, 101)
    assert np.array_equal(limited(quiet), quiet)
    loud = limited(np.linspace(PEAK, 5.0, 1001))
    assert (np.diff(loud) >= 0).all()
    assert loud.max() <= 1.0
    assert loud[1] > PEAK
