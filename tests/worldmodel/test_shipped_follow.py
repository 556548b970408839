"""The bounce and the pusher that ship do what prompts and actions say; those before them did not."""

from __future__ import annotations

import numpy as np
import pytest

from avtok.load import load_codec
from worldmodel.checks.actions import action_check, follow_actions
from worldmodel.checks.follow import prompt_following
from worldmodel.checks.of_prompts import from_prompts
from worldmodel.export import load_model
from worldmodel.model_folder import model_folder

pytestmark = pytest.mark.slow

SEEDS = range(5_000_000_000, 5_000_000_024)


def test_bounce_shows_colours_and_materials_and_goes_where_prompts_say():
    model, cfg, _ = load_model(model_folder("bounce"))
    codecs = load_codec(cfg.codec.video), load_codec(cfg.codec.audio)
    made = from_prompts(model, cfg, *codecs, world="bounce", seeds=SEEDS)
    found = prompt_following(made, sample_rate=cfg.data.sample_rate)["factors"]
    for factor in ("colour", "material", "direction"):
        assert found[factor]["accuracy"] > found[factor]["chance"] + 0.1, factor


def test_pusher_obeys_its_own_actions_without_delay():
    model, cfg, _ = load_model(model_folder("pusher"))
    codecs = load_codec(cfg.codec.video), load_codec(cfg.codec.audio)
    followed = follow_actions(model, cfg, *codecs, seeds=SEEDS)
    found = action_check(followed, np.random.default_rng(0))
    assert found["shuffle_ratio"] > 1.8
    assert abs(found["lag_frames"]) <= 1
