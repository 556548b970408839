"""The suite ranks what it must: the truth is perfect, a frozen frame and another episode are not."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from worldmodel.checks.freeze import black_share, longest_freeze_s, still_frames, still_share
from worldmodel.checks.motion import valid_prediction_times
from worldmodel.checks.result import CheckClip, scene_of, score
from worldmodel.checks.suite import run_checks
from worldmodel.worlds.bounce import BounceSettings, simulate
from worldmodel.worlds.settings import world_settings

FPS, RATE, GIVEN = 16, 16000, 16


@pytest.fixture(scope="module")
def truths() -> list[CheckClip]:
    episodes = [simulate(BounceSettings(), seed=seed, duration_s=2.0) for seed in range(14)]
    return [CheckClip(e.video_THWC, e.audio_N, scene_of(e.truth)) for e in episodes]


def frozen(clip: CheckClip) -> CheckClip:
    video_THWC, audio_N = clip.video_THWC.copy(), clip.audio_N.copy()
    video_THWC[GIVEN:] = video_THWC[GIVEN - 1]
    audio_N[RATE:] = 0
    return CheckClip(video_THWC, audio_N)


def check(rollouts, truths, **settings):
    return run_checks(
        rollouts, truths, **{"prefix_s": 1.0, "fps": FPS, "sample_rate": RATE, "seed": 0, **settings}
    )


def test_the_truth_scores_one_and_equals_its_floor(truths):
    checks = check(truths, truths)["checks"]
    for name in (
        "position_error",
        "position_error_1s",
        "energy_drift",
        "contact_sound_lag",
        "onset_f1",
        "sound_identity",
        "freeze",
    ):
        assert checks[name]["value"] == checks[name]["floor"], name
        assert checks[name]["score"] == 1, name
    assert 64 * checks["position_error"]["floor"] < 0.1
    assert checks["contact_sound_lag"]["floor"] < 5
    assert checks["onset_f1"]["floor"] > 0.95
    assert checks["sound_identity"]["floor"] > 0.95
    assert checks["energy_drift"]["floor"] < 0.05


def test_a_frozen_clip_scores_the_frozen_baseline(truths):
    result = check([frozen(clip) for clip in truths], truths)
    near = result["checks"]["position_error"]
    assert result["position_error_025s_over_frozen"] == pytest.approx(1, abs=0.02)
    assert near["value"] == pytest.approx(near["baselines"]["frozen_frame"], rel=0.02)
    assert near["score"] < 0.02
    assert result["checks"]["freeze"]["value"] == 1
    assert result["checks"]["freeze"]["score"] == 0
    assert "bounces are seen" in result["checks"]["contact_sound_lag"]["skipped"]
    assert result["checks"]["onset_f1"]["score"] == 0
    assert result["checks"]["energy_drift"]["value"] == pytest.approx(1, abs=0.01)
    assert result["checks"]["energy_drift"]["score"] < 0.02


def test_another_episode_is_worse_than_the_truth_and_than_a_frozen_frame(truths):
    result = check(truths[1:] + truths[:1], truths)
    near, heard = result["checks"]["position_error"], result["checks"]["onset_f1"]
    assert near["ci_low"] > 50 * near["floor"]
    assert result["position_error_025s_over_frozen"] > 1.5
    assert heard["value"] < 0.5 * heard["floor"]
    assert abs(heard["own_minus_another"]) < 0.1  # for its own clip as good as for any other
    assert result["onset_f1_gain_ci_low"] == heard["own_minus_another_ci_low"] < 0
    assert result["checks"]["contact_sound_lag"]["score"] > 0.95  # it is in sync with itself


@pytest.mark.parametrize(
    "transform", [lambda v: v[:, :, ::-1], lambda v: v[:, ::-1], lambda v: v.swapaxes(1, 2)]
)
def test_mirrored_or_transposed_pictures_are_far_off(truths, transform):
    few = truths[:6]
    turned = [replace(clip, video_THWC=transform(clip.video_THWC)) for clip in few]
    near = check(turned, few)["checks"]["position_error"]
    assert near["value"] > 100 * near["floor"]


@pytest.mark.parametrize("delay_ms", [40, 200])
def test_late_sound_costs_what_it_is_late(truths, delay_ms):
    shift = delay_ms * RATE // 1000
    late = [replace(c, audio_N=np.concatenate([np.zeros(shift, "f4"), c.audio_N[:-shift]])) for c in truths]
    lag = check(late, truths)["checks"]["contact_sound_lag"]
    assert lag["signed_lag_ms"] == pytest.approx(delay_ms, abs=10)
    assert lag["value"] == pytest.approx(delay_ms, abs=10)
    assert lag["ci_low"] <= lag["value"] <= lag["ci_high"]
    assert lag["value"] < lag["baselines"]["another_sound"]


def test_only_what_follows_the_prefix_is_judged(truths):
    broken = [
        replace(c, video_THWC=np.concatenate([c.video_THWC[:8] * 0, c.video_THWC[8:]])) for c in truths[:4]
    ]
    assert check(broken, truths[:4])["checks"]["position_error"]["score"] > 0.99


def test_clips_without_truth_get_reasons_and_what_needs_none(truths):
    real = [CheckClip(clip.video_THWC, clip.audio_N) for clip in truths[:4]]
    result = check(real, real)
    for name in ("position_error", "contact_sound_lag", "onset_f1"):
        assert "real clips have none" in result["checks"][name]["skipped"]
    assert result["position_error_025s_over_frozen"] is None
    for name in ("freeze", "colour_drift", "loudness_drift"):
        assert result["checks"][name]["value"] == result["checks"][name]["floor"]


def test_clips_without_sound_or_picture_are_reasons_not_crashes(truths):
    mute = [replace(clip, audio_N=None) for clip in truths[:6]]
    blind = [replace(clip, video_THWC=None) for clip in truths[:6]]
    assert "skipped" in check(mute, mute)["checks"]["loudness_drift"]
    assert check(mute, mute)["checks"]["position_error"]["score"] == 1
    assert "skipped" in check(blind, blind)["checks"]["freeze"]
    assert check(blind, blind)["checks"]["onset_f1"]["score"] == 1


def test_drift_of_colour_and_loudness_is_seen(truths):
    drifted = [
        replace(
            c,
            video_THWC=c.video_THWC // 2 + 100,
            audio_N=np.where(np.arange(2 * RATE) < RATE, c.audio_N, 0.5),
        )
        for c in truths
    ]
    checks = check(drifted, truths)["checks"]
    assert checks["colour_drift"]["score"] == 0
    assert checks["loudness_drift"]["score"] == 0


def test_the_result_is_plain_json_and_repeats(truths):
    few = truths[:3]
    first, second = check(few, few), check(few, few)
    assert json.dumps(first, allow_nan=False) == json.dumps(second, allow_nan=False)
    horizon = first["checks"]["position_error"]["horizon"]
    assert (
        len(horizon["horizon_s"])
        == len(horizon["value"])
        == len(horizon["baselines"]["frozen_frame"])
        == GIVEN
    )


@pytest.fixture(scope="module")
def many() -> list[CheckClip]:
    """World bounce: several bodies, many of them hidden for a while."""
    hidden = replace(world_settings("bounce"), occluder=0.7)
    episodes = [simulate(hidden, seed=seed, duration_s=2.0) for seed in range(24)]
    return [CheckClip(e.video_THWC, e.audio_N, scene_of(e.truth)) for e in episodes]


def test_several_bodies_are_each_followed_by_their_colour(many):
    checks = check(many, many)["checks"]
    for name in ("position_error", "position_error_1s", "energy_drift", "onset_f1", "sound_identity"):
        assert checks[name]["score"] == 1, name
    assert checks["permanence"]["floor"] > 0.9
    assert checks["permanence"]["score"] == 1
    assert checks["valid_prediction_time"]["value"] == checks["valid_prediction_time"]["floor"] == 1
    assert 64 * checks["position_error"]["floor"] < 0.1
    assert checks["sound_identity"]["floor"] > 0.9
    assert checks["energy_drift"]["floor"] < 0.25  # bodies pass energy to each other
    alone = sum(clip.scene.positions_TB2.shape[1] == 1 for clip in many)
    assert f"in {alone} rollouts" in checks["contact_sound_lag"]["skipped"]
    standing = check([frozen(clip) for clip in many], many)
    # Bodies that the plate covers in part when they stand still are seen beside their place.
    assert standing["position_error_025s_over_frozen"] == pytest.approx(1, abs=0.08)
    assert standing["checks"]["energy_drift"]["value"] > 0.9
    assert standing["checks"]["permanence"]["value"] < 0.3
    assert 0.05 < standing["checks"]["valid_prediction_time"]["value"] < 0.5


def test_swapped_colours_are_a_position_error(many):
    two = [clip for clip in many if clip.scene.positions_TB2.shape[1] >= 2]
    turned = [
        replace(clip, scene=replace(clip.scene, colors=(*clip.scene.colors[1:], clip.scene.colors[0])))
        for clip in two
    ]
    assert check(turned, turned)["checks"]["position_error"]["value"] > 0.1


def test_the_wrong_material_is_heard(truths):
    names = sorted({clip.scene.materials for clip in truths})
    chosen = {name: next(clip for clip in truths if clip.scene.materials == name) for name in names}
    wrong = []
    for clip in truths:
        other = names[(names.index(clip.scene.materials) + 1) % len(names)]
        wrong.append(replace(clip, audio_N=chosen[other].audio_N))
    identity = check(wrong, truths)["checks"]["sound_identity"]
    assert identity["value"] < 0.1
    assert identity["floor"] > 0.95
    assert identity["baselines"]["another_clip"] < 0.6


def test_a_body_that_speeds_up_has_more_energy(truths):
    faster = []
    for clip in truths:
        path = clip.video_THWC
        faster.append(
            replace(clip, video_THWC=np.concatenate([path[:GIVEN], path[GIVEN - 1 :: -2], path[1::2]]))
        )
    drift = check(faster, truths)["checks"]["energy_drift"]
    assert drift["value"] == pytest.approx(3, abs=0.6)  # twice the speed is four times the energy


def test_a_single_episode_has_no_unrelated_baseline(truths):
    assert set(check(truths[:1], truths[:1])["checks"]["position_error"]["baselines"]) == {"frozen_frame"}


def test_unpaired_lists_and_empty_prefixes_are_refused(truths):
    with pytest.raises(ValueError, match="one truth per rollout"):
        check(truths[:2], truths[:1])
    with pytest.raises(ValueError, match="holds no frame"):
        check(truths[:1], truths[:1], prefix_s=0.01)


def test_score_is_bounded_and_unknown_without_a_gap():
    assert score(0.2, 0.1, 0.3) == pytest.approx(0.5)
    assert score(0.9, 0.1, 0.3) == 0
    assert score(0.0, 0.1, 0.3) == 1
    assert score(0.6, 0.9, 0.1) == pytest.approx(0.625)  # where higher is better
    assert score(0.2, 0.1, 0.1) is None


def test_freezes_are_counted_in_frames_and_seconds(truths):
    video_THWC = truths[0].video_THWC[:16].copy()
    video_THWC[5:9] = video_THWC[4]
    assert np.flatnonzero(still_frames(video_THWC)).tolist() == [4, 5, 6, 7]
    assert longest_freeze_s(video_THWC, fps=16) == 0.25
    assert still_share(video_THWC) == pytest.approx(4 / 15)


def test_black_frames_are_told_from_a_dark_world(truths):
    video_THWC = truths[0].video_THWC[:4].copy()
    assert black_share(video_THWC) == 0
    video_THWC[:2] = 0
    assert black_share(video_THWC) == 0.5


def test_valid_prediction_time_ends_at_the_first_error_beyond_a_radius():
    error_EK = np.array([[0.01, 0.2, 0.01, 0.01], [0.01, 0.01, 0.01, 0.01], [0.5, 0.5, 0.5, 0.5]])
    times_E = valid_prediction_times(error_EK, np.full(3, 0.1), np.array([0.1, 0.2, 0.3, 0.4]))
    assert times_E.tolist() == [0.1, 0.4, 0.0]
