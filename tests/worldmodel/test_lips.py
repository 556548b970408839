"""Lip offset: what is in sync measures as such, and a shift of the sound is found."""

from __future__ import annotations

import numpy as np
import pytest

from worldmodel.checks.lips import lip_offset_ms, mouth_opening
from worldmodel.worlds.talker import TALKER, talk
from worldmodel.worlds.truth import Episode

pytest.importorskip("espeakng_loader", reason="needs the extra worldmodel[speech]")

RATES = {"fps": 16, "sample_rate": 16000}


@pytest.fixture(scope="module")
def episodes() -> list[Episode]:
    return [talk(TALKER["in"], seed=100 + seed, duration_s=2.0) for seed in range(12)]


def late(audio_N: np.ndarray, delay_ms: int) -> np.ndarray:
    samples = 16 * abs(delay_ms)
    if delay_ms >= 0:
        return np.concatenate([np.zeros(samples, np.float32), audio_N[: len(audio_N) - samples]])
    return np.concatenate([audio_N[samples:], np.zeros(samples, np.float32)])


def test_a_face_that_speaks_is_in_sync(episodes):
    offset, fit = lip_offset_ms([(e.video_THWC, e.audio_N) for e in episodes], **RATES)
    assert abs(offset) <= 40
    assert fit > 0.5


@pytest.mark.parametrize("delay_ms", [-200, -100, 100, 200])
def test_late_and_early_sound_is_found_to_be(episodes, delay_ms):
    true, _ = lip_offset_ms([(e.video_THWC, e.audio_N) for e in episodes], **RATES)
    moved, _ = lip_offset_ms([(e.video_THWC, late(e.audio_N, delay_ms)) for e in episodes], **RATES)
    assert moved - true == pytest.approx(delay_ms, abs=25)


def test_another_clips_voice_fits_worse(episodes):
    pairs = [(e.video_THWC, e.audio_N) for e in episodes]
    others = [(e.video_THWC, o.audio_N) for e, o in zip(episodes, episodes[1:] + episodes[:1], strict=True)]
    assert lip_offset_ms(pairs, **RATES)[1] > lip_offset_ms(others, **RATES)[1] + 0.2


def test_nothing_to_see_or_hear_has_no_offset(episodes):
    still = np.repeat(episodes[0].video_THWC[:1], 32, axis=0)
    for pair in ((still, episodes[0].audio_N), (episodes[0].video_THWC, np.zeros(32000, np.float32))):
        offset, fit = lip_offset_ms([pair], **RATES)
        assert np.isnan(offset)
        assert fit == 0.0
    assert mouth_opening(np.zeros((3, 64, 64, 3), np.uint8)).shape == (3,)
