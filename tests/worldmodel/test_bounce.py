"""World bounce_one: its truth is exact, its picture shows it, and the same seed gives the same bytes."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from worldmodel.worlds.bounce import BounceSettings, Episode, read_truth, simulate, write_truth
from worldmodel.worlds.drawing import COLORS, empty_box
from worldmodel.worlds.sound import MATERIALS

# T frames, H rows, W columns; positions are x right, y down.

SETTINGS = BounceSettings()


@pytest.fixture(scope="module")
def episodes() -> list[Episode]:
    return [simulate(SETTINGS, seed=seed, duration_s=6.0) for seed in range(12)]


def folded(start: float, velocity: float, radius: float, times_s: np.ndarray) -> np.ndarray:
    """Where a body between two elastic walls is: the free line, folded (the analytic answer)."""
    span = 1.0 - 2.0 * radius
    unfolded = (start - radius + velocity * times_s) % (2.0 * span)
    return radius + np.minimum(unfolded, 2.0 * span - unfolded)


def hit_times_s(
    start: float, velocity: float, radius: float, *, until_s: float, low: str, high: str
) -> list[tuple[float, str]]:
    span = 1.0 - 2.0 * radius
    to_wall = (1.0 - radius - start) if velocity > 0 else (start - radius)
    walls = (high, low) if velocity > 0 else (low, high)
    times_s = np.arange(to_wall / abs(velocity), until_s, span / abs(velocity))
    return [(float(time_s), walls[bounce % 2]) for bounce, time_s in enumerate(times_s)]


def test_same_seed_gives_the_same_pixels_and_samples():
    first, again = (simulate(SETTINGS, seed=7, duration_s=2.0) for _ in range(2))
    assert np.array_equal(first.video_THWC, again.video_THWC)
    assert np.array_equal(first.audio_N, again.audio_N)


def test_another_seed_gives_another_clip():
    first, other = (simulate(SETTINGS, seed=seed, duration_s=2.0) for seed in (7, 8))
    assert not np.array_equal(first.video_THWC, other.video_THWC)


def test_a_longer_clip_begins_with_the_shorter_one():
    short, long = (simulate(SETTINGS, seed=3, duration_s=seconds) for seconds in (2.0, 4.0))
    assert np.array_equal(short.video_THWC, long.video_THWC[:32])
    assert np.array_equal(short.audio_N, long.audio_N[:32000])


def test_lengths_and_types_are_as_promised(episodes: list[Episode]):
    for episode in episodes:
        assert episode.video_THWC.shape == (96, 64, 64, 3)
        assert episode.video_THWC.dtype == np.uint8
        assert episode.audio_N.shape == (96000,)
        assert episode.audio_N.dtype == np.float32
        assert episode.truth.positions_TK2.shape == episode.truth.velocities_TK2.shape == (96, 1, 2)
        assert len(episode.truth.caption.encode()) <= 24


def test_energy_stays_through_every_contact():
    truth = simulate(SETTINGS, seed=5, duration_s=20.0).truth
    energy_T = np.square(truth.velocities_TK2).sum((1, 2))
    assert len(truth.contacts) > 10
    assert np.abs(energy_T / energy_T[0] - 1).max() < 1e-12


def test_the_ball_stays_in_the_box(episodes: list[Episode]):
    for episode in episodes:
        radius = episode.truth.radius_K[0]
        assert episode.truth.positions_TK2.min() >= radius - 1e-12
        assert episode.truth.positions_TK2.max() <= 1 - radius + 1e-12


def test_positions_equal_the_analytic_path(episodes: list[Episode]):
    for episode in episodes:
        truth = episode.truth
        times_s = np.arange(96) / truth.fps
        for axis in range(2):
            start, velocity = truth.positions_TK2[0, 0, axis], truth.velocities_TK2[0, 0, axis]
            expected_T = folded(start, velocity, truth.radius_K[0], times_s)
            assert np.abs(truth.positions_TK2[:, 0, axis] - expected_T).max() < 1e-9


def test_contacts_are_exactly_the_analytic_wall_hits(episodes: list[Episode]):
    for episode in episodes:
        truth = episode.truth
        (x, y), (vx, vy) = truth.positions_TK2[0, 0], truth.velocities_TK2[0, 0]
        radius = truth.radius_K[0]
        expected = sorted(
            hit_times_s(x, vx, radius, until_s=6.0, low="left", high="right")
            + hit_times_s(y, vy, radius, until_s=6.0, low="top", high="bottom")
        )
        assert [contact.other for contact in truth.contacts] == [wall for _, wall in expected]
        assert np.allclose(truth.contact_times_s, [time_s for time_s, _ in expected], rtol=0, atol=1e-9)


def test_impulse_is_twice_the_speed_into_the_wall(episodes: list[Episode]):
    for episode in episodes:
        across, down = np.abs(episode.truth.velocities_TK2[0, 0])
        for contact in episode.truth.contacts:
            expected = 2 * (across if contact.other in ("left", "right") else down)
            assert contact.impulse == pytest.approx(expected, rel=1e-9)


def test_drawn_values_lie_in_their_ranges_and_off_the_axes(episodes: list[Episode]):
    for episode in episodes:
        velocity_2 = np.abs(episode.truth.velocities_TK2[0, 0])
        assert SETTINGS.speed[0] <= np.hypot(*velocity_2) <= SETTINGS.speed[1]
        assert SETTINGS.radius[0] <= episode.truth.radius_K[0] <= SETTINGS.radius[1]
        assert 14.99 < np.degrees(np.arctan2(*velocity_2)) < 75.01


def test_the_drawn_ball_is_where_the_truth_says(episodes: list[Episode]):
    plain_HWC = empty_box(64)
    for episode in episodes:
        ink_THW = np.abs(episode.video_THWC.astype(np.float64) - plain_HWC).sum(-1)
        ink_THW[ink_THW < 3] = 0  # rounding of the plain picture
        centers_P = np.arange(64) + 0.5
        mass_T = ink_THW.sum((1, 2))
        measured_T2 = np.stack(
            [(ink_THW.sum(1) @ centers_P) / mass_T, (ink_THW.sum(2) @ centers_P) / mass_T], axis=1
        )
        radius_px = episode.truth.radius_K[0] * 64
        truth_T2 = episode.truth.positions_TK2[:, 0] * 64
        # the ball differs less from the wall than from the floor, which pulls the centroid inwards there
        clear_T = ((truth_T2 > radius_px + 1.6) & (truth_T2 < 62.4 - radius_px)).all(1)
        assert np.abs(measured_T2 - truth_T2)[clear_T].max() < 0.05


def test_every_material_has_its_own_saturated_colour():
    for name, material in MATERIALS.items():
        frame_HWC = simulate(replace(SETTINGS, materials=(name,)), seed=1, duration_s=0.1).video_THWC[0]
        brightest = frame_HWC.reshape(-1, 3)[frame_HWC.sum(-1).argmax()].astype(int)
        assert np.abs(brightest - COLORS[material.color]).max() <= 4
        assert (brightest.max() - brightest.min()) / brightest.max() > 0.7


def test_frame_times_do_not_depend_on_the_frame_rate():
    slow, fast = (simulate(replace(SETTINGS, fps=fps), seed=2, duration_s=3.0).truth for fps in (10, 30))
    assert np.allclose(slow.positions_TK2, fast.positions_TK2[::3], rtol=0, atol=1e-9)


def test_truth_file_comes_back_and_has_the_same_bytes_for_the_same_seeds(tmp_path):
    for name in ("first", "again"):
        truths = [
            replace(simulate(SETTINGS, seed=seed, duration_s=1.0).truth, clip=f"clip_{seed:05d}.mp4")
            for seed in ((0, 1, 2) if name == "first" else (2, 0, 1))
        ]
        write_truth(tmp_path / f"{name}.parquet", truths)
    assert (tmp_path / "first.parquet").read_bytes() == (tmp_path / "again.parquet").read_bytes()
    for truth in read_truth(tmp_path / "first.parquet"):
        expected = simulate(SETTINGS, seed=truth.seed, duration_s=1.0).truth
        assert np.array_equal(truth.positions_TK2, expected.positions_TK2)
        assert np.array_equal(truth.velocities_TK2, expected.velocities_TK2)
        assert truth.contacts == expected.contacts
        assert (truth.materials, truth.caption, truth.fps) == (expected.materials, expected.caption, 16)


def test_a_parquet_file_of_something_else_is_refused_by_name(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"clip": ["a"]}), tmp_path / "other.parquet")
    with pytest.raises(ValueError, match=r"other\.parquet is not a truth file: it lacks world"):
        read_truth(tmp_path / "other.parquet")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"materials": ("stone",)}, "materials must be some of wood"),
        ({"speed": (1.0, 0.4)}, "speed must be"),
        ({"radius": (0.1, 0.6)}, "radius must be"),
    ],
)
def test_settings_that_cannot_be_are_refused(change: dict[str, tuple], message: str):
    with pytest.raises(ValueError, match=message):
        replace(SETTINGS, **change)


def test_a_clip_of_no_frames_is_refused():
    with pytest.raises(ValueError, match="less than one frame"):
        simulate(SETTINGS, seed=0, duration_s=0.01)
