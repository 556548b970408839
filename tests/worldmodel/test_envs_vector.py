"""A vector over the simulator is as many single environments, in each of Gymnasium's autoreset modes."""

from __future__ import annotations

import gymnasium
import numpy as np
import pytest
from gymnasium.error import ClosedEnvironmentError, ResetNeeded
from gymnasium.vector import AutoresetMode, VectorEnv

from tests.worldmodel.compare_envs import differences
from worldmodel.envs import PUSHER
from worldmodel.envs.vector_env import PusherVectorEnv

MODES = [mode.value for mode in AutoresetMode]


def make(num: int = 3, **settings: object) -> VectorEnv:
    return gymnasium.make_vec(PUSHER, num_envs=num, **settings)


def singles(mode: str, num: int = 3, **settings: object) -> VectorEnv:
    """Gymnasium's own loop over single environments."""
    loop = {"autoreset_mode": mode}
    return gymnasium.make_vec(PUSHER, num_envs=num, vectorization_mode="sync", vector_kwargs=loop, **settings)


def test_make_vec_finds_the_vector_and_batches_its_spaces():
    for env in (make(2), make(2, vectorization_mode="vector_entry_point")):
        assert isinstance(env, PusherVectorEnv)
        assert env.metadata["autoreset_mode"] == AutoresetMode.NEXT_STEP
        assert env.max_episode_steps == 32
        assert env.action_space.shape == (2, 4, 2)
        observation, _ = env.reset(seed=0)
        assert observation in env.observation_space


@pytest.mark.parametrize("mode", MODES)
def test_a_vector_is_as_many_singles_bit_for_bit(mode: str):
    vector = make(max_episode_steps=3, autoreset_mode=mode, twin=True)
    loop = singles(mode, max_episode_steps=3, twin=True)
    assert set(differences(vector.reset(seed=5), loop.reset(seed=5)).values()) == {0.0}
    vector.action_space.seed(1)
    truncations = 0
    for _ in range(9):
        actions = vector.action_space.sample()
        ours, theirs = vector.step(actions), loop.step(actions)
        assert set(differences(ours, theirs).values()) == {0.0}
        truncations += ours[3].sum()
        if mode == "Disabled" and ours[3].any():
            masks = ({"reset_mask": ours[3].copy()} for _ in range(2))
            found = [env.reset(options=mask) for env, mask in zip((vector, loop), masks, strict=True)]
            assert set(differences(*found).values()) == {0.0}
    assert truncations >= 6


def test_rows_reset_by_mask_begin_anew_and_the_others_go_on():
    vector, loop = make(autoreset_mode="Disabled"), singles("Disabled")
    for env in (vector, loop):
        env.reset(seed=[3, 30, 300])
    actions = np.full((3, 4, 2), 0.2, np.float32)
    for mask in ([False, True, False], [True, False, True]):
        differ = differences(vector.step(actions), loop.step(actions))
        assert set(differ.values()) == {0.0}
        options = ({"reset_mask": np.array(mask)} for _ in range(2))
        found = [env.reset(seed=[1, 2, 3], options=o) for env, o in zip((vector, loop), options, strict=True)]
        assert set(differences(*found).values()) == {0.0}
    given = {"reset_mask": np.array([True, False, False])}
    vector.reset(options=given)
    assert "reset_mask" in given  # what the caller holds is the caller's


def test_a_finished_row_is_not_stepped_on_where_autoreset_is_off():
    vector = make(max_episode_steps=1, autoreset_mode="Disabled")
    vector.reset(seed=0)
    actions = np.zeros((3, 4, 2), np.float32)
    assert vector.step(actions)[3].all()
    with pytest.raises(ResetNeeded, match=r"rows \[0, 1, 2\] have ended; reset them with"):
        vector.step(actions)


def test_what_a_vector_shows_later_does_not_change_what_it_showed():
    vector = make()
    before, _ = vector.reset(seed=0)
    kept = {name: array.copy() for name, array in before.items()}
    vector.step(np.full((3, 4, 2), 0.5, np.float32))
    assert all(np.array_equal(before[name], kept[name]) for name in kept)


@pytest.mark.parametrize(
    ("mask", "said"),
    [
        ([True, False, True], "must be a bool array of .3."),
        (np.array([1, 0, 1]), "must be a bool array of .3."),
        (np.array([True]), "must be a bool array of .3."),
        (np.zeros(3, bool), "names no row; set at least one"),
    ],
)
def test_a_mask_that_fits_nothing_is_refused(mask: object, said: str):
    vector = make()
    vector.reset(seed=0)
    with pytest.raises(ValueError, match=said):
        vector.reset(options={"reset_mask": mask})


def test_what_a_vector_cannot_do_is_said():
    vector = make()
    zeros = np.zeros((3, 4, 2), np.float32)
    with pytest.raises(ResetNeeded, match="call reset first"):
        vector.step(zeros)
    with pytest.raises(ResetNeeded, match=r"rows \[1, 2\] have never begun"):
        vector.reset(options={"reset_mask": np.array([True, False, False])})
    vector.reset(seed=0)
    with pytest.raises(
        ValueError, match=r"actions must be numbers of \[3, 4, 2\], got float32 of \[2, 4, 2\]"
    ):
        vector.step(zeros[:2])
    with pytest.raises(ValueError, match="actions hold NaN or infinity"):
        vector.step(zeros + np.nan)
    with pytest.raises(ValueError, match="seeds must be one a row, 3, got 2"):
        vector.reset(seed=[1, 2])
    with pytest.raises(ValueError, match="num_envs must be at least 1, got 0"):
        make(0)
    vector.close()
    vector.close()
    for call in (lambda: vector.step(zeros), lambda: vector.reset(seed=0)):
        with pytest.raises(ClosedEnvironmentError, match="this environment is closed"):
            call()


def test_each_row_is_rendered():
    vector = make(2, render_mode="rgb_array")
    assert vector.render() is None
    observation, _ = vector.reset(seed=0)
    assert np.array_equal(np.stack(vector.render()), observation["video"][:, -1])
