"""Does the shipped model `pusher` do what it is told? 64 episodes that it never saw, 1 s after 1 s.

`worldmodel/checks/actions.py` says what each figure is; the floors are of the simulator's pictures, coded.
"""

from __future__ import annotations

import numpy as np

from avtok.load import load_codec
from ray_jobs.bench import Measured
from ray_jobs.models import find_model
from worldmodel.checks.actions import action_check, follow_actions
from worldmodel.export import codecs_of, load_model
from worldmodel.load_config import dump_config
from worldmodel.worlds.clips import HELD_OUT_SEED

MODEL, EPISODES, SECONDS = "pusher", 64, 1.0
FIRST_SEED = 3 * HELD_OUT_SEED  # the checks after training are from 2 * HELD_OUT_SEED on


def run(smoke: bool) -> Measured:
    return measure(MODEL, episodes=4 if smoke else EPISODES)


def measure(name: str, *, episodes: int) -> Measured:
    """The same of another model: a folder or a run."""
    folder = find_model(name)
    model, cfg, _ = load_model(folder)
    rollout = cfg.rollout.model_copy(update={"seconds": SECONDS, "prefix_s": SECONDS})
    cfg = cfg.model_copy(update={"rollout": rollout})
    video, audio = map(load_codec, codecs_of(folder, cfg))
    seeds = range(FIRST_SEED, FIRST_SEED + episodes)
    found = action_check(
        follow_actions(model, cfg, video, audio, seeds=seeds), np.random.default_rng(cfg.seed)
    )
    return Measured(
        figures={
            "episodes": found["episodes"],
            "nafe": found["value"],
            "r2": found["r2"],
            "shuffle_ratio": found["shuffle_ratio"],
            "lag_frames": found["lag_frames"],
        },
        raw=found,
        n=episodes,
        baseline={
            "nafe_of_true_pictures_coded": found["floor"],
            "nafe_of_simulator": found["references"]["simulator"],
            "r2_of_true_pictures_coded": found["r2_floor"],
            "shuffle_ratio_of_simulator": found["shuffle_ratio_of_simulator"],
            "lag_frames_of_true_pictures_coded": found["lag_frames_floor"],
            **{f"nafe_of_{name}": value for name, value in found["baselines"].items()},
        },
        config=dump_config(cfg),
    )
