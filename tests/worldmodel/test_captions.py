"""Captions name what is there and where it goes, in words that a person would use."""

from __future__ import annotations

import numpy as np
import pytest

from worldmodel.worlds.bounce import simulate
from worldmodel.worlds.captions import caption_of, direction_of, short_caption
from worldmodel.worlds.physics import Disc
from worldmodel.worlds.settings import world_settings

LEFT, UP, DOWN = (-0.5, 0.1), (0.1, -0.5), (0.3, 0.4)


@pytest.mark.parametrize(
    ("velocities", "caption"),
    [
        ([LEFT], "a red steel ball, moving left"),
        ([LEFT, LEFT], "a red steel ball and an orange wooden one, moving left"),
        ([LEFT, UP], "a red steel ball moving left and an orange wooden one moving up"),
        (
            [LEFT, UP, DOWN],
            "a red steel ball moving left, an orange wooden one moving up and a blue glass one moving down",
        ),
    ],
)
def test_bodies_are_named_with_colour_material_and_direction(velocities, caption):
    discs = [Disc((0.5, 0.5), velocity, 0.1) for velocity in velocities]
    number = len(discs)
    names = ("steel", "wood", "glass")[:number], ("red", "orange", "blue")[:number]
    assert caption_of(discs, *names) == caption


def test_directions_are_those_of_the_picture():
    assert [direction_of(v) for v in ((0.5, 0.1), (-0.5, 0.1), (0.1, 0.5), (0.1, -0.5))] == [
        *("right", "left", "down", "up")
    ]
    for seed in range(30):
        truth = simulate(world_settings("bounce"), seed=seed, duration_s=0.25).truth
        if len(truth.materials) > 1:
            continue
        step_2 = truth.positions_TK2[1, 0] - truth.positions_TK2[0, 0]
        axis = int(np.abs(step_2).argmax())
        expected = (("left", "right"), ("up", "down"))[axis][int(step_2[axis] > 0)]
        met = any(contact.time_s < 1 / 16 for contact in truth.contacts)
        assert met or truth.caption.endswith(f"moving {expected}")


def test_a_world_of_one_look_a_material_has_short_ones():
    assert short_caption(["steel"]) == "a steel ball bounces"
    assert short_caption(["steel", "wood"]) == "2 balls"
