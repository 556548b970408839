"""Onsets and bounces are found at their times, and a delay between the two comes out as it went in."""

from __future__ import annotations

import numpy as np
import pytest

from worldmodel.checks.onset import (
    contacts_from_track,
    detect_onsets,
    f1,
    match_counts,
    merge_close,
    mode_lag_s,
    nearest_lags_s,
    pairwise_lags_s,
)
from worldmodel.checks.track import track_body
from worldmodel.worlds.bounce import BounceSettings, simulate

RATE = 16000


@pytest.fixture(scope="module")
def episodes():
    return [simulate(BounceSettings(), seed=seed, duration_s=2.0) for seed in range(16)]


def test_onsets_are_within_two_milliseconds_of_contacts(episodes):
    hits = extra = missed = 0
    for episode in episodes:
        onsets_M = detect_onsets(episode.audio_N, sample_rate=RATE)
        contacts_C = merge_close(episode.truth.contact_times_s)
        counts = match_counts(onsets_M, contacts_C, within_s=0.002)
        hits, extra, missed = hits + counts[0], extra + counts[1], missed + counts[2]
    assert f1(hits, extra, missed) > 0.97


def test_silence_noise_and_a_steady_tone_do_not_fire():
    rng = np.random.default_rng(0)
    time_s = np.arange(2 * RATE) / RATE
    assert len(detect_onsets(np.zeros(2 * RATE, dtype=np.float32), sample_rate=RATE)) == 0
    assert len(detect_onsets(0.001 * rng.standard_normal(2 * RATE), sample_rate=RATE)) == 0
    assert len(detect_onsets(0.2 * rng.standard_normal(2 * RATE)[RATE:], sample_rate=RATE)[1:]) == 0
    tone = 0.3 * np.sin(2 * np.pi * 150 * time_s) * np.minimum(time_s, 1)  # fades in over a second
    assert len(detect_onsets(tone, sample_rate=RATE)[1:]) == 0


def test_a_click_over_loud_noise_is_found():
    rng = np.random.default_rng(0)
    audio_N = 0.01 * rng.standard_normal(RATE)
    audio_N[8000:8080] += 0.5
    late_M = detect_onsets(audio_N, sample_rate=RATE)
    assert np.abs(late_M - 0.5).min() < 0.001


def test_bounces_seen_in_tracked_motion_are_true_ones(episodes):
    errors, seen = [], 0
    for episode in episodes:
        found_C = contacts_from_track(track_body(episode.video_THWC).positions_T2, fps=16)
        seen += len(found_C)
        errors += (
            np.abs(found_C[:, None] - episode.truth.contact_times_s).min(axis=1).tolist()
            if len(found_C)
            else []
        )
    assert seen >= 0.9 * sum(len(merge_close(e.truth.contact_times_s)) for e in episodes)
    assert np.median(errors) < 0.003
    assert np.quantile(errors, 0.95) < 0.020


def test_a_straight_or_lost_path_has_no_bounce():
    straight_T2 = np.stack([np.linspace(0.1, 0.9, 32), np.linspace(0.8, 0.3, 32)], axis=-1)
    noisy_T2 = straight_T2 + np.random.default_rng(0).normal(0, 0.001, (32, 2))
    assert len(contacts_from_track(noisy_T2, fps=16)) == 0
    assert len(contacts_from_track(np.full((32, 2), np.nan), fps=16)) == 0


@pytest.mark.parametrize("delay_ms", [-100, 0, 30, 200])
def test_an_injected_delay_comes_back_within_ten_milliseconds(episodes, delay_ms):
    differences = []
    for episode in episodes:
        shift = delay_ms * RATE // 1000
        padded_N = np.pad(episode.audio_N, RATE)
        audio_N = padded_N[RATE - shift :][: 2 * RATE]
        seen_C = contacts_from_track(track_body(episode.video_THWC).positions_T2, fps=16)
        differences.append(pairwise_lags_s(seen_C, detect_onsets(audio_N, sample_rate=RATE)))
    assert 1e3 * mode_lag_s(np.concatenate(differences)) == pytest.approx(delay_ms, abs=10)


def test_lags_are_signed_nearest_and_bounded():
    lag_C = nearest_lags_s(np.array([1.0, 2.0, 3.0]), np.array([1.04, 1.9, 3.6]))
    np.testing.assert_allclose(lag_C, [0.04, -0.1, np.nan])
    assert np.isnan(nearest_lags_s(np.array([1.0]), np.array([]))).all()


def test_one_onset_answers_for_one_contact_only():
    assert match_counts(np.array([1.0]), np.array([0.98, 1.03])) == (1, 0, 1)
    assert match_counts(np.array([1.0, 1.01]), np.array([1.0])) == (1, 1, 0)
    assert match_counts(np.array([]), np.array([1.0])) == (0, 0, 1)
    assert f1(1, 1, 0) == pytest.approx(2 / 3)
    assert np.isnan(f1(0, 0, 0))
