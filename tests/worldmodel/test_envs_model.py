"""Environments that a model imagines: seeds, neighbours, when actions count, sound, and the state seen."""

from __future__ import annotations

import warnings
from dataclasses import replace
from pathlib import Path

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env

from avtok.load import load_codec
from tests.worldmodel.compare_envs import differences
from tests.worldmodel.synthetic import make_batch, open_model, tiny_config, tiny_layout
from tests.worldmodel.tiny_pusher import write_tiny_pusher
from worldmodel.batch import ModalityLatents
from worldmodel.config import RolloutConfig
from worldmodel.envs import PUSHER
from worldmodel.envs.interface import Interface
from worldmodel.envs.model_backend import ModelBackend
from worldmodel.envs.pusher_env import PusherEnv
from worldmodel.envs.seen_state import SeenState
from worldmodel.envs.vector_env import PusherVectorEnv
from worldmodel.export import save_model
from worldmodel.session import RolloutSessions
from worldmodel.worlds.bounce import simulate
from worldmodel.worlds.live import LiveWorld
from worldmodel.worlds.settings import world_settings

torch.set_num_threads(1)
TOLERANCE = {"video": 1.0, "state": 0.05}  # a brightness step; what it moves a centroid, times 16 frames/s


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("model") / "tiny"
    write_tiny_pusher(folder)
    return str(folder)


def backend_of(env: PusherEnv | PusherVectorEnv) -> ModelBackend:
    assert isinstance(env.backend, ModelBackend)
    return env.backend


def draw(num: int, seed: int = 0) -> np.ndarray:
    """Actions [num, 4, 2]."""
    return np.random.default_rng(seed).uniform(-0.8, 0.8, (num, 4, 2)).astype(np.float32)


def test_gymnasiums_own_checker_finds_nothing(model: str):
    env = gymnasium.make(PUSHER, backend="model", model=model, render_mode="rgb_array", twin=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_env(env.unwrapped)


def test_the_same_seed_and_actions_give_the_same_bits_and_other_actions_others(model: str):
    env = PusherEnv("model", model=model)
    runs = []
    for actions in (draw(2), draw(2), draw(2, seed=1)):
        first, _ = env.reset(seed=3)
        runs.append([first] + [env.step(action)[0] for action in actions])
    for one, again, other in zip(*runs, strict=True):
        assert all(np.array_equal(one[name], again[name]) for name in one)
        assert np.array_equal(one["video"], other["video"]) == (one is runs[0][0])


@pytest.mark.parametrize("mode", ["NextStep", "SameStep", "Disabled"])
def test_a_row_is_what_it_would_be_alone_whenever_its_neighbours_began(model: str, mode: str):
    common = {"num_envs": 3, "max_episode_steps": 3, "backend": "model", "model": model, "twin": True}
    vector = gymnasium.make_vec(PUSHER, autoreset_mode=mode, **common)
    loop = gymnasium.make_vec(
        PUSHER, vectorization_mode="sync", vector_kwargs={"autoreset_mode": mode}, **common
    )
    found = [differences(vector.reset(seed=5), loop.reset(seed=5))]
    masks = {1: [False, True, False], 2: [True, False, True], 3: [True, True, False]}
    for step in range(4):
        if mode == "Disabled" and step in masks:
            options = ({"reset_mask": np.array(masks[step])} for _ in range(2))
            found.append(
                differences(*(env.reset(options=o) for env, o in zip((vector, loop), options, strict=True)))
            )
        found.append(differences(vector.step(draw(3, step)), loop.step(draw(3, step))))
    for differ in found:
        assert all(value <= TOLERANCE.get(name, 1e-3) for name, value in differ.items()), differ
    if mode == "Disabled":  # rows that began together step together
        assert [len(sessions.seeds) for sessions in backend_of(vector.unwrapped).sessions()] == [1, 2]


def test_an_action_is_told_to_the_model_with_the_frame_that_it_leads_into(model: str):
    """Against the rollout of a clip that has these actions in its own rows."""
    env = PusherEnv("model", model=model)
    env.reset(seed=8)
    action = draw(1)[0]
    env.step(action)
    backend = backend_of(env)
    (sessions,) = backend.sessions()
    prefix = env.interface.prefix_frames
    actions_BFA = torch.zeros(1, prefix + 4, backend.pipe.cfg.model.action_dim)
    actions_BFA[0, prefix - 1 : prefix + 3, :2] = torch.from_numpy(action)  # [i] leads from frame i to i + 1
    given = sessions.prefix
    clip = replace(
        given,
        video=longer(given.video, steps=1),
        audio=longer(given.audio, steps=16),
        actions_BFA=actions_BFA,
        actions_valid_BF=torch.ones(1, prefix + 4, dtype=torch.bool),
    )
    same = RolloutSessions(backend.pipe.model, backend.rollout, backend.pipe.prediction)
    same.reset(clip, prefix_chunks=prefix // 4, seeds=[8])
    same.step()
    assert torch.equal(same.chunks[-1].video_BVC, sessions.chunks[-1].video_BVC)
    assert torch.equal(same.chunks[-1].audio_BTC, sessions.chunks[-1].audio_BTC)


def longer(part: ModalityLatents, *, steps: int) -> ModalityLatents:
    """So many steps more, of which nothing is known."""
    unknown = torch.zeros(1, steps, dtype=torch.bool)
    return replace(
        part,
        latents=torch.cat([part.latents, torch.zeros_like(part.latents[:, :steps])], 1),
        valid_BT=torch.cat([part.valid_BT, unknown], 1),
        loss_mask_BT=torch.cat([part.loss_mask_BT, unknown], 1),
    )


def test_actions_beyond_the_limit_are_held_to_it(model: str):
    env = PusherEnv("model", model=model)
    found = []
    for size in (0.8, 5.0):
        env.reset(seed=1)
        found.append(env.step(np.full((4, 2), size, np.float32))[0]["video"])
    assert np.array_equal(*found)


def test_chunks_of_sound_are_those_of_the_whole_clip(model: str):
    """Decoders look back and are late: decoded chunk by chunk without care, sound clicks at every seam."""
    env = PusherEnv("model", model=model)
    sounds = [env.reset(seed=2)[0]["audio"]] + [env.step(action)[0]["audio"] for action in draw(6)]
    latents = backend_of(env).sessions()[0].latents()
    whole_N = np.asarray(backend_of(env).pipe.audio.decode(latents.audio[0]))
    begins = (env.interface.prefix_frames - 5) * 1000
    assert np.abs(whole_N).max() > 0.05
    assert np.abs(np.concatenate(sounds) - whole_N[begins:-1000]).max() < 1e-4


def test_the_beginning_is_the_simulators_and_the_twin_goes_on_from_it(model: str):
    env, real = PusherEnv("model", model=model, twin=True), PusherEnv("sim", prefix_s=0.5)
    warmup = {"actions_warmup": np.full((7, 2), 0.3)}
    (ours, info), (theirs, _) = (world.reset(seed=21, options=warmup) for world in (env, real))
    assert np.abs(ours["video"].astype(float) - theirs["video"]).mean() < 4  # what the codec changes
    assert np.abs(ours["state"][:2] - theirs["state"][:2]).max() < 0.02
    assert np.array_equal(info["gt_state"], theirs["state"])
    assert info["seen"].sum() == 1 + int(theirs["state"][4::5].sum())
    for action in draw(2):
        info, theirs = env.step(action)[4], real.step(action)[0]
        assert np.array_equal(info["gt_state"], theirs["state"])


def test_the_state_is_measured_in_pictures_to_a_hundredth_of_the_box():
    codec = load_codec("patchconv-4x8x8-48")
    face = Interface.of("in", chunk_frames=4, prefix_s=1.0, hold_action=False)
    places, speeds = [], []
    for seed in range(12):
        world = LiveWorld(face.settings, seed=seed)
        piece = world.begin(8, np.full((7, 2), 0.4))
        state, seen = SeenState(face, world.scene.colors).of(
            codec.decode(codec.encode(piece.video_THWC))[-4:]
        )
        assert seen[: 1 + len(world.scene.colors)].all()
        found, truth = face.state_values(state), face.state_values(world.state())
        assert found[4::5].tolist() == truth[4::5].tolist()
        places.append(np.abs(found - truth)[[0, 1, 5, 6]])
        speeds.append(np.abs(found - truth)[[2, 3, 7, 8]])
    assert np.max(places) < 0.02
    assert np.median(places) < 0.005
    assert np.median(speeds) < 0.1


def test_a_body_that_is_not_seen_stays_where_it_was_at_rest():
    face = Interface.of("in", chunk_frames=4, prefix_s=1.0, hold_action=False)
    world = LiveWorld(face.settings, seed=0)
    state = SeenState(face, world.scene.colors)
    piece = world.begin(4)
    before, _ = state.of(piece.video_THWC)
    after, seen = state.of(np.zeros_like(piece.video_THWC))
    assert not seen.any()
    assert np.array_equal(after.pusher_2, before.pusher_2)
    assert np.array_equal(after.positions_K2, before.positions_K2)
    assert not after.pusher_velocity_2.any()
    assert np.isfinite(face.state_values(after)).all()


def test_a_model_of_another_world_is_refused(tmp_path: Path):
    cfg = tiny_config()
    save_model(tmp_path / "other", open_model(cfg, tiny_layout(cfg)).state_dict(), tiny_layout(cfg), cfg, {})
    with pytest.raises(
        ValueError, match=r"needs \(16, 16000, \(64, 64\)\) and 2; give a model that was trained"
    ):
        PusherEnv("model", model=str(tmp_path / "other"))


def test_without_pictures_there_is_no_environment_and_without_sound_there_is_silence(tmp_path: Path):
    for alone in ("sound", "picture"):
        write_tiny_pusher(tmp_path / alone, objective={f"{alone}_alone": 1.0})
    with pytest.raises(ValueError, match="was trained without pictures, which tell states; give another"):
        PusherEnv("model", model=str(tmp_path / "sound"))
    env = PusherEnv("model", model=str(tmp_path / "picture"))
    for seen in (env.reset(seed=1)[0], env.step(draw(1)[0])[0]):
        assert seen["video"].any()
        assert not seen["audio"].any()


@pytest.mark.parametrize("guidance", [1.0, 2.0])
def test_sessions_that_are_kept_go_on_as_if_the_others_had_stayed(guidance: float):
    cfg = tiny_config(data={"clip_s": 1.0})
    model = open_model(cfg, tiny_layout(cfg))
    rollout = RolloutConfig(prefix_s=0.25, steps=2, guidance_text=guidance)
    runs = []
    for keep in (None, [2, 0]):
        sessions = RolloutSessions(model, rollout, "x")
        sessions.reset(make_batch(model.layout, clips=3), prefix_chunks=1, seeds=[7, 8, 9])
        actions_NBFA = torch.randn(4, 3, 4, 2, generator=torch.Generator().manual_seed(0))
        sessions.step(actions_NBFA[0])
        if keep:
            sessions.keep(keep)
        for actions_BFA in actions_NBFA[1:]:
            sessions.step(actions_BFA[keep or [0, 1, 2]])
        runs.append(sessions)
    whole, kept = (run.latents() for run in runs)
    assert runs[1].seeds == [9, 7]
    assert torch.allclose(kept.video, whole.video[[2, 0]], atol=1e-4)
    assert torch.allclose(kept.audio, whole.audio[[2, 0]], atol=1e-4)
    runs[1].replay()
    assert torch.allclose(runs[1].latents().video, kept.video, atol=1e-4)
    for wrong in ([], [2], [0, 0]):
        with pytest.raises(ValueError, match="sessions to keep must be some of 0 to 1, each once"):
            runs[1].keep(wrong)


def test_the_scene_of_a_seed_is_that_of_simulate(model: str):
    _, info = PusherEnv("model", model=model).reset(seed=33)
    assert info["caption"] == simulate(world_settings("pusher"), seed=33, duration_s=0.1).truth.caption
    assert info["state_from"] == "pictures"
