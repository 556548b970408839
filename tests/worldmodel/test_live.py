"""A world that is stepped shows what `simulate` shows, and sounds so, however it is cut into pieces."""

from __future__ import annotations

import numpy as np
import pytest

from worldmodel.worlds.bounce import Episode, simulate
from worldmodel.worlds.live import LiveWorld, Piece
from worldmodel.worlds.settings import world_settings
from worldmodel.worlds.sound import MATERIALS, RunningSound, Strike, contact_sound

FRAMES = 64


def actions(seed: int) -> np.ndarray:
    """float32 as an agent gives them, some of them beyond the limit."""
    return np.random.default_rng(seed).uniform(-1.0, 1.0, (FRAMES, 2)).astype(np.float32)


def pieces(world: LiveWorld, sizes: list[int], told_T2: np.ndarray | None) -> list[Piece]:
    """Actions lead into the frames of a piece: they are those from the frame before it on."""
    found, frame = [], 0
    for size in sizes:
        first = frame - 1
        if frame == 0:
            found.append(world.begin(size, None if told_T2 is None else told_T2[: size - 1]))
        else:
            found.append(world.advance(size, None if told_T2 is None else told_T2[first : first + size]))
        frame += size
    return found


def assert_equal(found: list[Piece], episode: Episode) -> None:
    video, audio = (np.concatenate([getattr(p, name) for p in found]) for name in ("video_THWC", "audio_N"))
    assert np.array_equal(video, episode.video_THWC)
    assert not audio[:1000].any()
    assert np.abs(episode.audio_N).max() > 0.05  # else the line below would say little
    assert np.abs(audio[1000:] - episode.audio_N[:-1000]).max() < 1e-6


@pytest.mark.parametrize("sizes", [[4] * 16, [1] * 64, [64], [7, 1, 30, 2, 24]])
@pytest.mark.parametrize("seed", [3, 4])
def test_pieces_of_any_size_are_the_clip(seed: int, sizes: list[int]):
    settings = world_settings("pusher")
    episode = simulate(settings, seed=seed, duration_s=FRAMES / 16, actions_T2=actions(seed))
    assert_equal(pieces(LiveWorld(settings, seed=seed), sizes, actions(seed)), episode)


@pytest.mark.parametrize(
    ("world", "split"),
    [("pusher", "ood_speed"), ("pusher", "ood_count"), ("bounce", "in"), ("bounce_one", "in")],
)
def test_every_world_and_split_can_be_stepped(world: str, split: str):
    settings = world_settings(world, split)
    for seed in range(6):
        told = actions(seed) if settings.pusher else None
        episode = simulate(settings, seed=seed, duration_s=FRAMES / 16, actions_T2=told)
        live = LiveWorld(settings, seed=seed)
        assert_equal(pieces(live, [4] * 16, told), episode)
        assert live.caption == episode.truth.caption


def test_the_state_is_that_of_the_frame_seen_last():
    settings = world_settings("pusher")
    truth = simulate(settings, seed=9, duration_s=1.0, actions_T2=actions(9)[:16]).truth
    live = LiveWorld(settings, seed=9)
    live.begin(4, actions(9)[:3])
    live.advance(8, actions(9)[3:11])
    state = live.state()
    assert live.frame == 11
    assert truth.pusher_T2 is not None
    assert np.array_equal(state.pusher_2, truth.pusher_T2[11])
    assert np.array_equal(state.positions_K2, truth.positions_TK2[11])
    assert np.array_equal(state.velocities_K2, truth.velocities_TK2[11])


def test_running_sound_rings_on_and_falls_silent_where_the_whole_does():
    rng = np.random.default_rng(0)
    materials = list(MATERIALS.values())
    strikes = [
        Strike(float(time_s), float(rng.uniform(0.1, 2.0)), materials[rng.integers(4)])
        for time_s in np.sort(rng.uniform(0.0, 4.0, 12))
    ]
    strikes += [Strike(0.25, 1.0, materials[2]), Strike(0.5 - 1e-9, 1.0, materials[0])]  # on edges of pieces
    whole_N = contact_sound(strikes, num_samples=96_000, sample_rate=16_000, gain=0.3)
    running = RunningSound(sample_rate=16_000, gain=0.3)
    parts = []
    for start in range(0, 96_000, 4000):
        now = [s for s in strikes if start <= s.time_s * 16_000 < start + 4000]
        parts.append(running.add(now, 4000))
    assert np.abs(np.concatenate(parts) - whole_N).max() < 1e-6
    assert not parts[-1].any()
    assert not running._ringing  # else a long episode would get slower and slower


@pytest.mark.parametrize("count", [3, 5])
def test_another_number_of_actions_than_frames_is_refused(count: int):
    live = LiveWorld(world_settings("pusher"), seed=0)
    live.begin(4)
    with pytest.raises(ValueError, match=rf"actions must be \[4, 2\], one a frame, got \[{count}, 2\]"):
        live.advance(4, np.zeros((count, 2)))


def test_actions_without_a_pusher_are_refused():
    live = LiveWorld(world_settings("bounce"), seed=0)
    with pytest.raises(ValueError, match="world bounce has no pusher"):
        live.begin(4, np.zeros((3, 2)))
