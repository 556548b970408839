"""What is said about a pusher that follows, is late, stands still or does as another was told."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from avtok.load import load_codec
from tests.worldmodel.tiny_pusher import write_tiny_pusher
from worldmodel.checks.actions import Followed, action_check, follow_actions, lag_frames, velocities
from worldmodel.checks.track_pusher import track_pusher
from worldmodel.export import codecs_of, load_model
from worldmodel.worlds.bounce import simulate
from worldmodel.worlds.settings import world_settings

torch.set_num_threads(1)
NUM, FRAMES = 16, 16


def episodes(*, late: int = 0, gain: float = 1.0, deaf: bool = False, walls: bool = False) -> list[Followed]:
    """Pushers that do, `late` frames late, `gain` times what they are told, or what they would anyway."""
    rng = np.random.default_rng(0)
    told_EF2 = rng.normal(0.0, 0.4, (NUM, FRAMES, 2)).cumsum(1) * 0.3
    found = []
    for number in range(NUM):
        own, other = told_EF2[number], told_EF2[(number + 1) % NUM]
        done = gain * np.roll(own, late, 0)
        stopped = np.where(np.arange(FRAMES)[:, None] < 6, 0.0, 1.0) if walls else 1.0
        done_other = done if deaf else gain * np.roll(other, late, 0)
        found.append(Followed(own, other, done * stopped, done_other, own * stopped, own * stopped, other))
    return found


def check(followed: list[Followed]) -> dict:
    return action_check(followed, np.random.default_rng(0))


def test_a_pusher_that_obeys_has_no_error_and_another_episodes_actions_show():
    found = check(episodes())
    assert (found["value"], found["r2"], found["lag_frames"], found["score"]) == (0.0, 1.0, 0, 1.0)
    assert found["other_nafe"] == 0.0
    assert found["baselines"]["frozen_frame"] == 1.0
    assert found["shuffle_ratio"] is None  # nothing is left to divide by
    nearly = check(episodes(gain=0.9))
    assert nearly["value"] == pytest.approx(0.1)
    assert nearly["ci_low"] <= nearly["value"] <= nearly["ci_high"]
    assert nearly["shuffle_ratio"] > 5
    json.dumps(nearly, allow_nan=False)


def test_a_pusher_that_ignores_actions_has_a_shuffle_ratio_of_one():
    found = check(episodes(gain=0.9, deaf=True))
    assert found["shuffle_ratio"] == pytest.approx(1.0)
    assert found["other_nafe"] > 0.5


@pytest.mark.parametrize("late", [-1, 0, 1, 2, 3])
def test_the_lag_is_found(late: int):
    found = check(episodes(late=late))
    assert found["lag_frames"] == late
    assert (found["value"] > 0.2) == (late != 0)


def test_a_frozen_pusher_is_as_bad_as_standing_still():
    found = check(episodes(gain=0.0))
    assert found["value"] == pytest.approx(1.0)
    assert found["score"] == pytest.approx(0.0)


def test_where_a_wall_stops_the_simulators_pusher_too_nothing_is_held_against_the_model():
    found = check(episodes(walls=True))
    assert found["value"] < 0.05
    assert found["free_share"] < 0.75
    assert found["all_intervals"]["nafe"] > 0.2
    assert found["all_intervals"]["against_simulator"] == 0.0


def test_the_pusher_is_found_in_every_picture_beside_balls_of_any_colour_and_steel():
    for split in ("in", "ood_size"):
        base = world_settings("pusher", split)
        for materials in (("steel",), base.materials):
            for seed in range(8):
                episode = simulate(replace(base, materials=materials), seed=seed, duration_s=1.0)
                error = np.linalg.norm(track_pusher(episode.video_THWC) - episode.truth.pusher_T2, axis=1)
                assert error.max() < 0.01
    codec = load_codec("patchconv-4x8x8-48")
    coded = codec.decode(codec.encode(episode.video_THWC))
    assert np.linalg.norm(track_pusher(coded) - episode.truth.pusher_T2, axis=1).max() < 0.03


def test_no_pusher_is_found_where_there_is_none():
    episode = simulate(replace(world_settings("bounce"), occluder=0.0), seed=3, duration_s=1.0)
    assert np.isnan(track_pusher(episode.video_THWC)).all()
    assert not velocities(episode.video_THWC, 16).any()


def test_a_model_is_rolled_out_under_own_and_under_the_next_episodes_actions(tmp_path: Path):
    write_tiny_pusher(tmp_path / "tiny", seconds=0.5, sessions_per_actor=2)
    model, cfg, _ = load_model(tmp_path / "tiny")
    video, audio = map(load_codec, codecs_of(tmp_path / "tiny", cfg))
    found = follow_actions(model, cfg, video, audio, seeds=[11, 12, 13])
    assert len(found) == 3
    for number, one in enumerate(found):
        assert one.own_F2.shape == one.measured_F2.shape == one.floor_F2.shape == (8, 2)
        truth = simulate(world_settings("pusher"), seed=11 + number, duration_s=1.0).truth
        assert truth.actions_T2 is not None
        assert np.array_equal(one.own_F2, truth.actions_T2[7:-1])  # from the last given frame on
        assert np.allclose(one.other_F2, found[(number + 1) % 3].own_F2, atol=1e-6)
        assert truth.pusher_T2 is not None
        assert np.allclose(one.simulated_F2, np.diff(truth.pusher_T2[7:], axis=0) * 16)
        assert np.abs(one.floor_F2 - one.simulated_F2).mean() < 0.1
        assert not np.allclose(one.simulated_F2, one.simulated_other_F2)
    assert check(found)["value"] > 0.5  # it has learned nothing
    with pytest.raises(ValueError, match="shuffled among at least 2 episodes, got 1 seeds"):
        follow_actions(model, cfg, video, audio, seeds=[11])


def test_nothing_moves_late_where_nothing_moves():
    still = np.zeros((2, 8, 2))
    assert lag_frames(still, still) in range(-2, 5)
    assert "skipped" in check([])
