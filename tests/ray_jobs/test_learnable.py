"""What can teach nothing is told before it is trained."""

from __future__ import annotations

import numpy as np
import pytest

from ray_jobs.errors import UserError
from ray_jobs.learnable import Contents, check_learnable, held_out_notes, never_reached, useless_clips
from ray_jobs.plan import make_plan
from tests.ray_jobs.test_plan import write_manifest
from worldmodel.config import RunConfig

FILM = {"end_s": 1.0, "duration_s": 1.0}
SILENT = {**FILM, "has_sound": False}
SOUND = {**FILM, "has_video": False}
STILL = {"has_sound": False}


def contents_of(tmp_path, rows, cfg):
    rows = [{"uri": f"file {i}", "group": str(i), **row} for i, row in enumerate(rows)]
    return Contents.of_plan(make_plan(write_manifest(tmp_path / "m.parquet", rows), cfg))


def config(**objective):
    return RunConfig.model_validate(
        {
            "data": {"manifest": "clips", "clip_s": 1.0, "held_out": 0.0},
            "rollout": {"prefix_s": 0.5},
            "objective": objective,
        }
    )


@pytest.mark.parametrize(
    ("rows", "objective", "why"),
    [
        ([SOUND], {"picture_alone": 1.0}, "hold sound, and objective.picture_alone=1 trains pictures alone"),
        ([STILL, SILENT], {"sound_alone": 1.0}, "hold films and stills, and objective.sound_alone=1 trains"),
        ([STILL], {"image_weight": 0.0}, "hold stills, and objective.image_weight=0"),
        ([SILENT], {"video_weight": 0.0}, "hold films, and objective.video_weight=0"),
        ([SOUND, STILL], {"audio_weight": 0, "image_weight": 0}, "image_weight=0 and objective.audio_weight"),
    ],
)
def test_a_run_that_can_learn_nothing_is_refused(tmp_path, rows, objective, why):
    cfg = config(**objective)
    contents = contents_of(tmp_path, rows, cfg)
    with pytest.raises(UserError, match="clips: nothing to learn: all clips for training hold") as refused:
        check_learnable(contents, cfg)
    assert why in str(refused.value)
    check_learnable(contents, config())


def test_clips_that_teach_nothing_among_others_are_told(tmp_path):
    cfg = config(picture_alone=1.0)
    contents = contents_of(tmp_path, [FILM, SILENT, STILL, SOUND, SOUND], cfg)
    check_learnable(contents, cfg)
    assert useless_clips(contents, cfg) == [
        "2 of 5 clips for training teach nothing: they hold sound, and objective.picture_alone=1 trains "
        "pictures alone"
    ]
    assert not useless_clips(contents, config())


def test_a_sample_says_nothing_of_the_other_clips():
    cfg, none = config(picture_alone=1.0), np.zeros(3, dtype=bool)
    contents = Contents.of(none, ~none, none, is_sample=True)
    check_learnable(contents, cfg)
    assert useless_clips(contents, cfg) == [
        "3 of 3 clips looked at teach nothing: they hold sound, and objective.picture_alone=1 trains "
        "pictures alone"
    ]


@pytest.mark.parametrize(
    ("rows", "notes"),
    [
        ([FILM] * 30, []),
        ([FILM] * 2, ["held-out error and rollouts are of one file alone: data.held_out=0.5"]),
        ([{**FILM, "uri": "a", "group": "a"}, {**FILM, "uri": "b", "group": "a"}, FILM], []),
        ([SOUND] * 30, []),
        ([STILL] * 30, []),
        (
            [{**FILM, "group": "a"}] + [SOUND] * 30,
            ["nothing will be continued after training: no held-out clip"],
        ),
        ([{**FILM, "end_s": 0.48, "duration_s": 0.48}] * 30, []),
        (
            [{**FILM, "end_s": 0.4, "duration_s": 0.4}] * 30,
            ["nothing will be continued after training: held-out clips are 0.4 s long at most, and rollout"],
        ),
    ],
)
def test_what_held_out_clips_cannot_do_is_told(tmp_path, rows, notes):
    cfg = config()
    cfg = cfg.model_copy(update={"data": cfg.data.model_copy(update={"held_out": 0.5})})
    rows = [{"uri": f"file {i}", "group": str(i), **row} for i, row in enumerate(rows)]
    plan = make_plan(write_manifest(tmp_path / "m.parquet", rows), cfg)
    found = held_out_notes(plan, cfg)
    assert len(found) == len(notes)
    assert all(one.startswith(start) for one, start in zip(found, notes, strict=True))


def test_phases_that_begin_after_the_last_step_are_told():
    phases = [{"name": "long", "steps": 10}, {"name": "short", "steps": 5}, {"name": "last"}]
    told = {
        steps: never_reached(
            RunConfig.model_validate({"data": {"phases": phases}, "train": {"steps": steps}})
        )
        for steps in (10, 11, 15, 16)
    }
    assert told[10] == ["data.phases: train.steps=10 ends before short (at step 10), last (at step 15)"]
    assert told[11] == ["data.phases: train.steps=11 ends before last (at step 15)"]
    assert told[15] == ["data.phases: train.steps=15 ends before last (at step 15)"]
    assert told[16] == []
