"""Worlds bounce and pusher: several bodies that meet, hide and are pushed, under the same laws."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from worldmodel.worlds.bounce import BounceSettings, Episode, read_truth, simulate, write_truth
from worldmodel.worlds.drawing import OCCLUDER
from worldmodel.worlds.physics import Disc, move
from worldmodel.worlds.settings import PUSHER_RADIUS, SPLITS, WORLDS, world_settings
from worldmodel.worlds.sound import MATERIALS

# T frames, K bodies, 2 is x (right) and y (down).

NUM, SECONDS = 24, 4.0


@pytest.fixture(scope="module")
def episodes() -> list[Episode]:
    return [simulate(world_settings("bounce"), seed=seed, duration_s=SECONDS) for seed in range(NUM)]


@pytest.fixture(scope="module")
def pushed() -> list[Episode]:
    return [simulate(world_settings("pusher"), seed=seed, duration_s=SECONDS) for seed in range(NUM)]


def gaps(episode: Episode) -> list[float]:
    """Smallest distances between rims, and between rims and walls."""
    truth, found = episode.truth, []
    for index, radius in enumerate(truth.radius_K):
        path_T2 = truth.positions_TK2[:, index]
        found += [(path_T2 - radius).min(), (1 - radius - path_T2).min()]
        for other in range(index):
            apart_T = np.linalg.norm(path_T2 - truth.positions_TK2[:, other], axis=1)
            found.append((apart_T - radius - truth.radius_K[other]).min())
    return found


@pytest.mark.parametrize("world", WORLDS)
@pytest.mark.parametrize("split", SPLITS)
def test_the_same_seed_gives_the_same_clip_in_every_world_and_split(world: str, split: str):
    first, again = (simulate(world_settings(world, split), seed=5, duration_s=1.0) for _ in range(2))
    assert np.array_equal(first.video_THWC, again.video_THWC)
    assert np.array_equal(first.audio_N, again.audio_N)
    assert (first.truth.world, first.truth.split) == (world, split)


def test_clips_differ_in_count_material_colour_size_and_occlusion(episodes: list[Episode]):
    truths = [episode.truth for episode in episodes]
    assert {len(truth.materials) for truth in truths} == {1, 2, 3}
    assert {name for truth in truths for name in truth.materials} == set(MATERIALS)
    assert len({name for truth in truths for name in truth.colors}) == 6
    assert all(len(set(truth.colors)) == len(truth.colors) for truth in truths)
    radii = np.concatenate([truth.radius_K for truth in truths])
    assert radii.min() < 0.08
    assert radii.max() > 0.12
    assert 0.1 < np.mean([truth.occluder is not None for truth in truths]) < 0.6


def test_bodies_never_overlap_and_never_leave_the_box(episodes: list[Episode]):
    assert min(gap for episode in episodes for gap in gaps(episode)) > -1e-3
    met = [c for episode in episodes for c in episode.truth.contacts if c.other == "body"]
    assert len(met) > 20  # else the line above would say little


def test_energy_stays_through_contacts_of_unequal_bodies(episodes: list[Episode]):
    for episode in episodes:
        truth = episode.truth
        energy_T = (truth.mass_K[:, None] * truth.velocities_TK2**2).sum((1, 2))
        assert np.abs(energy_T / energy_T[0] - 1).max() < 1e-9


def test_two_bodies_that_meet_exchange_the_impulse_that_is_told():
    one = Disc((0.2, 0.5), (0.8, 0.0), 0.1, 1.0)
    two = Disc((0.7, 0.55), (-0.2, 0.0), 0.1, 3.0)
    motion = move([one, two], num_frames=16, fps=32)
    (contact,) = [c for c in motion.contacts if c.other == "body"]
    assert (contact.body, contact.other_body) == (0, 1)
    # They touch when the distance along x is sqrt(0.2^2 - 0.05^2); they close at 1 box width/s.
    assert contact.time_s == pytest.approx(0.5 - np.sqrt(0.2**2 - 0.05**2), abs=2e-5)
    changed = motion.velocities_TK2[-1] - motion.velocities_TK2[0]
    for index, mass in enumerate((1.0, 3.0)):
        assert np.hypot(*(mass * changed[index])) == pytest.approx(contact.impulse, rel=1e-6)
    # The analytic answer at the instant of contact, to which the step of 1 ms is put back.
    normal_2 = np.array([np.sqrt(0.2**2 - 0.05**2), 0.05]) / 0.2
    expected = 2 * (1 * 3 / 4) * np.dot([1.0, 0.0], normal_2)
    assert contact.impulse == pytest.approx(expected, rel=1e-3)


def test_after_a_meeting_bodies_are_where_they_would_be_had_no_step_been_late():
    """Head-on, equal masses: they swap velocities at 0.3 s, which no step of 1 / (9 * 111) s hits."""
    discs = [Disc((0.3, 0.5), (0.4, 0.0), 0.05, 1.0), Disc((0.7, 0.5), (-0.6, 0.0), 0.05, 1.0)]
    motion = move(discs, num_frames=5, fps=9)
    (contact,) = motion.contacts
    assert contact.time_s == pytest.approx(0.3, abs=1e-6)
    after_s = 4 / 9 - 0.3
    expected = [0.3 + 0.4 * 0.3 - 0.6 * after_s, 0.7 - 0.6 * 0.3 + 0.4 * after_s]
    assert motion.positions_TK2[4, :, 0] == pytest.approx(expected, abs=1e-6)


def test_momentum_stays_where_two_bodies_meet_off_centre():
    discs = [Disc((0.3, 0.5), (0.5, 0.1), 0.12, 0.7), Disc((0.7, 0.52), (-0.4, 0.0), 0.08, 1.8)]
    motion = move(discs, num_frames=10, fps=32)
    momentum_T2 = (np.array([0.7, 1.8])[:, None] * motion.velocities_TK2).sum(1)
    assert [c.other for c in motion.contacts] == ["body"]
    assert np.abs(momentum_T2 - momentum_T2[0]).max() < 1e-9


def test_both_bodies_of_a_meeting_are_heard():
    base = replace(world_settings("bounce"), occluder=0.0, bodies=(2, 2))
    found = 0
    for seed in range(150):
        episode = simulate(base, seed=seed, duration_s=0.6)
        truth, contacts = episode.truth, episode.truth.contacts
        if not contacts or contacts[0].other != "body" or contacts[0].time_s > 0.5:
            continue  # what is heard first must be the meeting
        until_s = min([c.time_s for c in contacts[1:]], default=0.6)
        start, stop = int(contacts[0].time_s * 16000) + 1, int(until_s * 16000)
        if stop - start < 1000 or truth.materials[0] == truth.materials[1]:
            continue
        spectrum = np.abs(np.fft.rfft(episode.audio_N[start:stop], n=16000))
        for name in truth.materials:
            pitch = round(MATERIALS[name].frequency_hz)
            assert spectrum[pitch - 30 : pitch + 30].max() > 0.2 * spectrum.max()
            found += 1
    assert found >= 8


def test_visible_is_one_without_an_occluder_and_zero_behind_it(episodes: list[Episode]):
    hidden = 0
    for episode in episodes:
        truth = episode.truth
        if truth.occluder is None:
            assert (truth.visible_TK == 1).all()
            continue
        left, top, right, bottom = truth.occluder
        for index, radius in enumerate(truth.radius_K):
            x_T, y_T = truth.positions_TK2[:, index].T
            margin = radius + 1.5 / 64
            inside_T = (x_T > left + margin) & (x_T < right - margin)
            inside_T &= (y_T > top + margin) & (y_T < bottom - margin)
            hidden += inside_T.sum()
            assert truth.visible_TK[inside_T, index].max(initial=0.0) == 0.0
            away_T = (x_T < left - margin) | (x_T > right + margin)
            assert truth.visible_TK[away_T, index].min(initial=1.0) == 1.0
    assert hidden > 10


def test_the_occluder_is_in_front_of_everything(episodes: list[Episode]):
    episode = next(e for e in episodes if e.truth.occluder is not None)
    left, top, right, bottom = (round(edge * 64) for edge in episode.truth.occluder or ())
    assert (episode.video_THWC[:, top:bottom, left:right] == np.array(OCCLUDER)).all()


def test_captions_name_colour_and_material_of_every_body(episodes: list[Episode]):
    for episode in episodes:
        truth = episode.truth
        for color, material in zip(truth.colors, truth.materials, strict=True):
            assert f"{color} {MATERIALS[material].adjective} " in truth.caption
        assert len(truth.caption.encode()) <= 112  # what a model should read to follow every word


def test_materials_of_one_colour_look_different():
    base = replace(
        world_settings("bounce"), occluder=0.0, bodies=(1, 1), radius=(0.12, 0.12), colors=("blue",)
    )
    pictures = [
        simulate(replace(base, materials=(name,)), seed=3, duration_s=0.1).video_THWC[0].astype(float)
        for name in MATERIALS
    ]
    for index, one in enumerate(pictures):
        for other in pictures[:index]:
            assert np.abs(one - other).max() > 40


@pytest.mark.parametrize(
    ("split", "outside"),
    [
        (
            "ood_speed",
            lambda truth, ranges: np.linalg.norm(truth.velocities_TK2[0], axis=1).min() > ranges.speed[1],
        ),
        ("ood_size", lambda truth, ranges: truth.radius_K.min() > ranges.radius[1]),
        ("ood_count", lambda truth, ranges: len(truth.materials) > ranges.bodies[1]),
    ],
)
@pytest.mark.parametrize("world", WORLDS)
def test_a_split_out_of_distribution_lies_outside_in_its_own_way(world: str, split: str, outside):
    inside = world_settings(world)
    for seed in range(4):
        truth = simulate(world_settings(world, split), seed=seed, duration_s=0.5).truth
        assert outside(truth, inside)
        assert not outside(simulate(inside, seed=seed, duration_s=0.5).truth, inside)


def test_the_pusher_follows_its_actions(pushed: list[Episode]):
    errors = []
    for episode in pushed:
        truth = episode.truth
        assert truth.pusher_T2 is not None
        assert truth.actions_T2 is not None
        assert np.abs(truth.actions_T2).max() <= 0.8
        step_T2 = np.diff(truth.pusher_T2, axis=0) * truth.fps
        free_T = ((truth.pusher_T2 > 0.2) & (truth.pusher_T2 < 0.8)).all(1)[:-1]
        for index, radius in enumerate(truth.radius_K):
            apart_T = np.linalg.norm(truth.pusher_T2 - truth.positions_TK2[:, index], axis=1)[:-1]
            free_T &= apart_T > radius + PUSHER_RADIUS + 0.15
        errors.append(np.linalg.norm(step_T2 - truth.actions_T2[:-1], axis=1)[free_T])
    # action[i] leads from frame i to i + 1; the rest is the time to speed up.
    assert np.median(np.concatenate(errors)) < 0.05


def test_one_frame_off_the_actions_fit_worse(pushed: list[Episode]):
    right, off = [], []
    for episode in pushed:
        truth = episode.truth
        assert truth.pusher_T2 is not None
        assert truth.actions_T2 is not None
        step_T2 = np.diff(truth.pusher_T2, axis=0) * truth.fps
        right.append(np.linalg.norm(step_T2[1:-1] - truth.actions_T2[1:-2], axis=1))
        for shift in (0, 2):
            off.append(
                np.linalg.norm(step_T2[1:-1] - truth.actions_T2[shift : shift + len(step_T2) - 2], axis=1)
            )
    assert np.median(np.concatenate(off)) > 2 * np.median(np.concatenate(right))


def test_given_actions_move_the_pusher_and_are_told():
    settings = world_settings("pusher")
    right_T2 = np.tile([0.5, 0.0], (16, 1))
    episode = simulate(settings, seed=2, duration_s=1.0, actions_T2=right_T2)
    assert np.array_equal(episode.truth.actions_T2, right_T2)
    assert episode.truth.pusher_T2 is not None
    assert episode.truth.pusher_T2[-1, 0] > min(0.9, episode.truth.pusher_T2[0, 0] + 0.2)


def test_pushing_changes_what_the_bodies_do(pushed: list[Episode]):
    touched = [c for episode in pushed for c in episode.truth.contacts if c.other == "pusher"]
    assert len(touched) > 10
    for episode in pushed:
        assert min(gaps(episode)) > -2e-3  # held against a wall, a ball gives way by a hair


def test_truth_of_every_kind_comes_back_from_its_file(tmp_path, episodes, pushed):
    truths = [
        replace(episode.truth, clip=f"clip_{index:05d}.mp4")
        for index, episode in enumerate([*episodes[:6], *pushed[:2]])
    ]
    write_truth(tmp_path / "truth.parquet", truths)
    for written, read in zip(truths, read_truth(tmp_path / "truth.parquet"), strict=True):
        for name in vars(written):
            ours, theirs = getattr(written, name), getattr(read, name)
            same = np.array_equal(ours, theirs) if isinstance(ours, np.ndarray) else ours == theirs
            assert same, name


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"bodies": (2, 1)}, "bodies must be"),
        ({"colors": ("red", "pink")}, "colors must be some of"),
        ({"bodies": (3, 3), "colors": ("red", "blue")}, "3 bodies need as many colors"),
        ({"bodies": (6, 6), "radius": (0.2, 0.3)}, "do not fit into the box"),
        ({"damping": 0.0}, "damping in"),
    ],
)
def test_settings_that_cannot_be_are_refused(change: dict, message: str):
    with pytest.raises(ValueError, match=message):
        replace(world_settings("bounce"), **change)


def test_actions_without_a_pusher_or_of_another_length_are_refused():
    with pytest.raises(ValueError, match="has no pusher"):
        simulate(BounceSettings(), seed=0, duration_s=1.0, actions_T2=np.zeros((16, 2)))
    with pytest.raises(ValueError, match=r"actions must be \[16, 2\]"):
        simulate(world_settings("pusher"), seed=0, duration_s=1.0, actions_T2=np.zeros((15, 2)))


def test_unknown_worlds_and_splits_are_refused_by_name():
    with pytest.raises(ValueError, match="there is bounce_one, bounce, pusher"):
        world_settings("billiards")
    with pytest.raises(ValueError, match="there is in, ood_speed, ood_size, ood_count"):
        world_settings("bounce", "test")
