"""One environment over the simulator: Gymnasium's rules, where actions lead, seeds, and what it refuses."""

from __future__ import annotations

import subprocess
import sys
import warnings

import gymnasium
import numpy as np
import pytest
from gymnasium.error import ClosedEnvironmentError, ResetNeeded
from gymnasium.utils.env_checker import check_env

from worldmodel.envs import PUSHER
from worldmodel.envs.interface import Seen
from worldmodel.worlds.bounce import simulate
from worldmodel.worlds.settings import world_settings

PREFIX = 16  # frames


def make(**settings: object) -> gymnasium.Env:
    return gymnasium.make(PUSHER, **settings)


def draw(env: gymnasium.Env, count: int, seed: int = 0) -> list[np.ndarray]:
    env.action_space.seed(seed)
    return [env.action_space.sample() for _ in range(count)]


@pytest.mark.parametrize("settings", [{}, {"hold_action": True}, {"twin": True, "split": "ood_count"}])
def test_gymnasiums_own_checker_finds_nothing(settings: dict):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_env(make(render_mode="rgb_array", **settings).unwrapped)


def test_registering_is_light_and_the_prefixed_name_needs_no_import():
    code = (
        "import sys, gymnasium, worldmodel.envs\n"
        "assert not {'torch', 'pymunk', 'ray'} & sys.modules.keys(), 'heavy'\n"
        "gymnasium.make('worldmodel.envs:worldmodel/pusher').reset(seed=0)\n"
        "assert 'torch' not in sys.modules, 'the simulator needs none'"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_each_action_leads_into_its_own_frame_and_the_clip_is_that_of_simulate():
    env = make()
    observation, info = env.reset(seed=12)
    actions = draw(env, 6)
    seen = [observation] + [env.step(action)[0] for action in actions]
    told_T2 = np.concatenate([np.zeros((PREFIX - 1, 2), np.float32), *actions, np.zeros((1, 2))])
    episode = simulate(
        world_settings("pusher"), seed=info["seed"], duration_s=len(told_T2) / 16, actions_T2=told_T2
    )
    video, audio = (np.concatenate([one[name] for one in seen]) for name in ("video", "audio"))
    assert np.array_equal(video, episode.video_THWC[PREFIX - 4 :])
    begins = (PREFIX - 5) * 1000  # sound ends with the last frame, so it begins a frame before the first
    assert np.abs(audio - episode.audio_N[begins:-1000]).max() < 1e-6
    truth = episode.truth
    assert truth.pusher_T2 is not None
    assert np.allclose(seen[-1]["state"][:2], truth.pusher_T2[-1], atol=1e-6)
    assert np.allclose(seen[-1]["state"][5:7], truth.positions_TK2[-1, 0], atol=1e-6)
    assert seen[-1]["state"][4] == 1


def test_the_last_action_of_a_step_is_seen_in_its_last_frame_and_in_no_earlier_one():
    """Off by one, an agent would see what it does a frame late."""
    seen = []
    for last in ((0.0, 0.0), (0.5, 0.5)):
        env = make()
        env.reset(seed=2)
        action = np.zeros((4, 2), np.float32)
        action[-1] = last
        seen.append(env.step(action)[0]["video"].astype(int))
    changed_C = np.abs(seen[0] - seen[1]).max((1, 2, 3)) > 0
    assert changed_C.tolist() == [False, False, False, True]


def test_the_same_seed_and_actions_give_the_same_bits_and_another_seed_others():
    runs = []
    for seed in (5, 5, 6):
        env = make()
        observation, _ = env.reset(seed=seed)
        runs.append([observation] + [env.step(action)[0] for action in draw(env, 3)])
    for first, again, other in zip(*runs, strict=True):
        assert all(np.array_equal(first[name], again[name]) for name in first)
        assert not np.array_equal(first["video"], other["video"])


def test_episodes_after_a_seed_are_drawn_from_it():
    env = make()
    drawn = []
    for _ in range(2):
        seeds = [env.reset(seed=7)[1]["seed"]] + [env.reset()[1]["seed"] for _ in range(3)]
        assert seeds[0] == 7
        assert len(set(seeds)) == 4
        drawn.append(seeds)
    assert drawn[0] == drawn[1]


def test_the_reward_is_minus_the_distance_to_the_nearest_ball():
    env = make()
    env.reset(seed=1)
    for action in draw(env, 4):
        observation, reward, terminated, truncated, _ = env.step(action)
        state = observation["state"].astype(float)
        bodies = state[4:].reshape(-1, 5)
        away = [np.hypot(*(b[1:3] - state[:2])) for b in bodies if b[0]]
        assert reward == pytest.approx(-min(away), abs=1e-6)
        assert (terminated, truncated) == (False, False)
    absent = np.array([0.1, 0.1, 0, 0, 1, 0.4, 0.5, 0, 0, 0, 0, 0, 0, 0], np.float32)
    assert Seen(observation["video"], observation["audio"], absent, {}).reward == pytest.approx(-0.5)


def test_an_episode_ends_by_its_length_alone():
    env = make(max_episode_steps=3)
    env.reset(seed=0)
    assert [env.step(action)[3] for action in draw(env, 3)] == [False, False, True]
    assert gymnasium.spec(PUSHER).max_episode_steps == 32


def test_a_held_action_is_the_same_as_one_repeated():
    one, many = make(hold_action=True), make()
    assert one.action_space.shape == (2,)
    action = np.array([0.3, -0.6], np.float32)
    for env in (one, many):
        env.reset(seed=3)
    held, repeated = one.step(action)[0], many.step(np.tile(action, (4, 1)))[0]
    assert all(np.array_equal(held[name], repeated[name]) for name in held)


def test_a_warmup_leads_through_the_beginning():
    env = make()
    resting = env.reset(seed=4)[0]["state"][:4]
    warmup = np.full((PREFIX - 1, 2), 0.4)
    moved = env.reset(seed=4, options={"actions_warmup": warmup})[0]["state"][:4]
    assert not np.allclose(resting[:2], moved[:2], atol=0.05)
    with pytest.raises(ValueError, match=r"actions_warmup'\] must be finite of \[15, 2\].*got \[16, 2\]"):
        env.reset(options={"actions_warmup": np.zeros((PREFIX, 2))})
    with pytest.raises(ValueError, match="options of reset are actions_warmup, got warmup"):
        env.reset(options={"warmup": warmup})


def test_pictures_are_rendered_as_last_frame_or_all():
    env = make(render_mode="rgb_array_list")
    env.reset(seed=0)
    observation = env.step(draw(env, 1)[0])[0]
    assert np.array_equal(np.stack(env.render()), observation["video"])
    one = make(render_mode="rgb_array")
    one.reset(seed=0)
    one.step(draw(one, 1)[0])
    assert np.array_equal(one.render(), observation["video"][-1])
    assert env.metadata["render_fps"] == 16


@pytest.mark.parametrize(
    ("action", "said"),
    [
        (np.full((4, 2), np.nan, np.float32), "actions hold NaN or infinity; give finite"),
        (np.full((4, 2), np.inf, np.float32), "actions hold NaN or infinity; give finite"),
        (np.zeros((3, 2), np.float32), r"actions must be numbers of \[1, 4, 2\], got float32 of \[1, 3, 2\]"),
        (np.zeros(2, np.float32), r"actions must be numbers of \[1, 4, 2\]"),
        (np.full((4, 2), "left"), r"actions must be numbers"),
    ],
)
def test_an_action_that_cannot_be_followed_is_refused_and_the_world_stays(action: np.ndarray, said: str):
    env, other = make().unwrapped, make().unwrapped
    for world in (env, other):
        world.reset(seed=0)
    with pytest.raises(ValueError, match=said):
        env.step(action)
    fine = np.full((4, 2), 0.1, np.float32)
    assert np.array_equal(env.step(fine)[0]["video"], other.step(fine)[0]["video"])


def test_a_closed_environment_says_so_and_closes_again():
    env = make().unwrapped
    with pytest.raises(ResetNeeded, match="call reset first"):
        env.step(np.zeros((4, 2), np.float32))
    env.reset(seed=0)
    env.close()
    env.close()
    for call in (lambda: env.step(np.zeros((4, 2), np.float32)), lambda: env.reset(seed=0)):
        with pytest.raises(ClosedEnvironmentError, match="this environment is closed; make another one"):
            call()


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"backend": "model", "model": "nosuch"}, "nosuch: not an exported model .no such folder or run"),
        ({"backend": "dream"}, "backend must be 'sim' or 'model', got 'dream'"),
        ({"split": "far"}, "no split is named 'far'"),
        ({"prefix_s": 0.3}, "prefix_s=0.3 is not of whole chunks of 0.25 s; use 0.25"),
        ({"prefix_s": 0.0}, "prefix_s=0.0 is not of whole chunks of 0.25 s; use 0.25"),
    ],
)
def test_what_cannot_be_made_is_said(settings: dict, said: str):
    with pytest.raises(ValueError, match=said):
        make(**settings)
