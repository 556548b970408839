"""Checks of prompts: true clips pass them, clips of other prompts do not, sessions are the pipeline's."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from avtok.load import load_codec
from worldmodel.checks.follow import FACTORS, Seen, prompt_following
from worldmodel.checks.of_prompts import Prompted, from_nothing, from_prompts
from worldmodel.checks.prompt_suite import prompt_facts, run_prompt_checks
from worldmodel.checks.result import CheckClip
from worldmodel.checks.speaking import speech_checks
from worldmodel.model.text import encode_texts
from worldmodel.pipeline import WorldModelPipeline
from worldmodel.worlds.catalog import make_episode, world_settings
from worldmodel.worlds.truth import Episode

RATES = {"fps": 16, "sample_rate": 16000}


def episodes_of(world: str, number: int) -> list[Episode]:
    return [make_episode(world_settings(world), seed=300 + i, duration_s=2.0) for i in range(number)]


def prompted(episodes: list[Episode], shown: list[Episode]) -> Prompted:
    """The clips of `shown` as what was made of the prompts of `episodes`."""
    true, made = ([CheckClip(e.video_THWC, e.audio_N) for e in clips] for clips in (episodes, shown))
    return Prompted([e.truth for e in episodes], made, true)


@pytest.fixture(scope="module")
def balls() -> list[Episode]:
    return episodes_of("bounce", 24)


def test_true_clips_follow_their_prompts_and_other_prompts_by_chance(balls):
    found = prompt_following(prompted(balls, balls), sample_rate=16000)
    for factor in FACTORS:
        said = found["factors"][factor]
        assert said["accuracy"] == said["codec"] >= 0.75  # a body near a diagonal sets out either way
        assert said["ci_low"] > said["chance"]
    turned = prompt_following(prompted(balls, balls[1:] + balls[:1]), sample_rate=16000)
    for factor in FACTORS:
        said = turned["factors"][factor]
        assert said["accuracy"] < said["codec"] - 0.2
        assert said["ci_low"] <= said["chance"] + 0.1


def test_bodies_that_are_there_but_go_elsewhere_do_no_better_than_chance(balls):
    backwards = prompted(balls, [replace(e, video_THWC=e.video_THWC[3::-1]) for e in balls])
    said = prompt_following(backwards, sample_rate=16000)["factors"]["direction"]
    assert said["accuracy"] < said["chance"]  # some have touched a wall by then
    assert 0.2 < said["chance"] < 0.4  # other prompts' bodies would not be there: near 0


def test_each_factor_sees_its_own_fault(balls):
    one = next(
        e
        for e in balls
        if len(e.truth.colors) == 1 and not e.truth.occluder and e.truth.contacts[0].time_s > 0.3
    )
    truth, clip = one.truth, CheckClip(one.video_THWC, one.audio_N)
    assert {factor: Seen(clip, 16000).follows(truth, factor) for factor in FACTORS} == dict.fromkeys(
        FACTORS, 1
    )
    backwards = Seen(CheckClip(one.video_THWC[3::-1], one.audio_N), 16000)
    assert backwards.follows(truth, "direction") == 0
    assert backwards.follows(truth, "colour") == 1
    grey = Seen(
        CheckClip(one.video_THWC.mean(-1, keepdims=True).repeat(3, -1).astype(np.uint8), one.audio_N), 16000
    )
    assert (
        grey.follows(truth, "colour"),
        grey.follows(truth, "count"),
        grey.follows(truth, "direction"),
    ) == (0, 0, 0)
    silent = Seen(CheckClip(one.video_THWC, np.zeros_like(one.audio_N)), 16000)
    assert silent.follows(truth, "material") == 0
    assert silent.follows(truth, "direction") == 1


def test_sentences_are_heard_in_true_clips_and_not_in_others():
    pytest.importorskip("espeakng_loader", reason="needs the extra worldmodel[speech]")
    said = episodes_of("talker", 12)
    found = speech_checks(prompted(said, said), **RATES)
    words, lips = found["word_error_rate"], found["lip_offset"]
    assert words["value"] == words["floor"] < 0.2
    assert words["baselines"]["another_sentence"] > 0.5
    assert lips["value"] == 0
    assert lips["fit"] > lips["fit_of_another_voice"] + 0.2
    late = [
        Episode(e.video_THWC, np.concatenate([np.zeros(1600, np.float32), e.audio_N[:-1600]]), e.truth)
        for e in said
    ]
    lips = speech_checks(prompted(said, late), **RATES)["lip_offset"]
    assert lips["ci_low"] <= lips["value"] <= lips["ci_high"]
    assert lips["value"] == pytest.approx(100, abs=25)
    turned = speech_checks(prompted(said, said[1:] + said[:1]), **RATES)["word_error_rate"]
    assert turned["value"] > 0.5


def test_prompts_of_a_batch_are_answered_as_by_the_pipeline():
    pipe = WorldModelPipeline.from_pretrained("bounce")
    cfg = pipe.cfg
    texts = ["a red steel ball", "a blue glass ball"]
    text_BN = torch.stack(
        [
            encode_texts(t, "", caption_bytes=cfg.model.text_tokens, speech_bytes=cfg.model.speech_bytes)
            for t in texts
        ]
    )
    with torch.no_grad():
        sessions = from_nothing(pipe.model, cfg, text_BN, cfg.rollout, seeds=[7, 8])
        for _ in range(2):
            sessions.step()
    latents = sessions.latents()
    for row, text in enumerate(texts):
        clip = pipe(text, seed=7 + row, num_frames=8)
        torch.testing.assert_close(latents.video[row], clip.latents.video[0], atol=1e-3, rtol=0)
        torch.testing.assert_close(latents.audio[row], clip.latents.audio[0], atol=1e-3, rtol=0)


def test_of_each_seed_comes_a_clip_as_long_as_the_trained_ones():
    pipe = WorldModelPipeline.from_pretrained("bounce")
    cfg = pipe.cfg.model_copy(update={"rollout": pipe.cfg.rollout.model_copy(update={"steps": 1})})
    video, audio = load_codec(cfg.codec.video), load_codec(cfg.codec.audio)
    found = from_prompts(pipe.model, cfg, video, audio, world="bounce", seeds=[5, 6, 7])
    assert [truth.seed for truth in found.truths] == [5, 6, 7]
    for clips in (found.generated, found.codec):
        assert [np.asarray(clip.video_THWC).shape for clip in clips] == [(32, 64, 64, 3)] * 3
        assert [np.asarray(clip.audio_N).shape for clip in clips] == [(32000,)] * 3
    true = make_episode(world_settings("bounce"), seed=6, duration_s=2.0).video_THWC
    assert np.abs(np.asarray(found.codec[1].video_THWC).astype(int) - true).mean() < 8


@pytest.mark.parametrize(
    ("alone", "asked"), [("picture", {"colour", "count", "direction"}), ("sound", {"material"})]
)
def test_a_model_of_one_modality_is_asked_about_that(alone: str, asked: set[str]):
    pipe = WorldModelPipeline.from_pretrained("bounce")
    rollout = pipe.cfg.rollout.model_copy(update={"steps": 1})
    objective = pipe.cfg.objective.model_copy(update={f"{alone}_alone": 1.0})
    cfg = pipe.cfg.model_copy(update={"rollout": rollout, "objective": objective})
    found = from_prompts(pipe.model, cfg, pipe.video, pipe.audio, world="bounce", seeds=[5, 6])
    checks = run_prompt_checks(found, world="bounce", fps=16, sample_rate=16000)
    assert checks["checks"]["prompt_following"]["factors"].keys() == asked
    assert {line.split()[0] for line in prompt_facts(checks)} == asked
    checks = run_prompt_checks(found, world="talker", fps=16, sample_rate=16000) if alone == "picture" else {}
    assert not checks.get("checks")
