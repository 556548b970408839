"""The tracker finds the body to a tenth of a pixel, on the right axes, and says so when there is none."""

from __future__ import annotations

import numpy as np
import pytest

from worldmodel.checks.track import track_body
from worldmodel.worlds.bounce import BounceSettings, simulate
from worldmodel.worlds.drawing import Look, draw_scene, empty_box

SETTINGS = BounceSettings()


def still_disc(x: float, y: float, *, radius: float = 0.12, num_frames: int = 3) -> np.ndarray:
    positions_TK2 = np.tile([[[x, y]]], (num_frames, 1, 1))
    return draw_scene(positions_TK2, [Look((240, 138, 36), "plain", radius)], size_px=64)[0]


@pytest.mark.parametrize("material", SETTINGS.materials)
def test_tracker_rms_on_truth_is_below_a_tenth_of_a_pixel(material):
    settings = BounceSettings(materials=(material,))
    episodes = [simulate(settings, seed=seed, duration_s=2.0) for seed in range(6)]
    error_px = 64 * np.concatenate(
        [track_body(e.video_THWC).positions_T2 - e.truth.positions_TK2[:, 0] for e in episodes]
    )
    assert np.sqrt((error_px**2).mean(axis=0)).max() < 0.1
    assert np.abs(error_px.mean(axis=0)).max() < 0.02  # no half-pixel convention is mixed up


def test_x_is_to_the_right_and_y_is_down():
    track = track_body(still_disc(0.8, 0.3))
    np.testing.assert_allclose(track.positions_T2, [[0.8, 0.3]] * 3, atol=2e-3)


def test_area_is_that_of_the_disc():
    assert track_body(still_disc(0.5, 0.5)).area_T == pytest.approx(np.pi * 0.12**2, rel=0.1)


def test_a_frozen_body_is_still_found():
    assert np.isfinite(track_body(still_disc(0.4, 0.6, num_frames=32)).positions_T2).all()


def test_frames_without_a_body_are_lost_and_others_are_not():
    video_THWC = still_disc(0.5, 0.5, num_frames=6)
    video_THWC[2:4] = empty_box(64).astype(np.uint8)
    lost_T = np.isnan(track_body(video_THWC).positions_T2).any(axis=1)
    assert lost_T.tolist() == [False, False, True, True, False, False]


def test_noise_and_a_flash_are_no_body():
    rng = np.random.default_rng(0)
    noise_THWC = rng.integers(0, 40, (4, 64, 64, 3)).astype(np.uint8)
    flash_THWC = still_disc(0.5, 0.5, num_frames=5)
    flash_THWC[2] = 255
    assert np.isnan(track_body(noise_THWC).positions_T2).all()
    assert np.isnan(track_body(flash_THWC).positions_T2[2]).all()


def test_speckles_far_away_do_not_pull_the_centroid():
    video_THWC = still_disc(0.3, 0.3)
    video_THWC[:, 60, ::9] = 255
    np.testing.assert_allclose(track_body(video_THWC).positions_T2, [[0.3, 0.3]] * 3, atol=5e-3)


def test_float_pictures_are_refused_by_name():
    with pytest.raises(ValueError, match="uint8"):
        track_body(np.zeros((2, 8, 8, 3), dtype=np.float32))
