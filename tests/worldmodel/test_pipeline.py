"""Prompt -> clip by the shipped model: the same seed, beginnings, sound that is given, and bad requests."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from avtok.decode import decode_clip, probe
from avtok.mux import write_clip
from worldmodel.pipeline import BadRequest, Clip, WorldModelPipeline
from worldmodel.prompt import Prompt, PromptError
from worldmodel.worlds.bounce import Episode, simulate
from worldmodel.worlds.settings import world_settings

PROMPT = "a red steel ball"


@pytest.fixture(scope="module")
def pipe() -> WorldModelPipeline:
    return WorldModelPipeline.from_pretrained("bounce")


@pytest.fixture(scope="module")
def episode() -> Episode:
    return simulate(world_settings("bounce"), seed=77, duration_s=2.0)


@pytest.fixture(scope="module")
def clip(pipe) -> Clip:
    return pipe(PROMPT, seed=4)


def test_a_clip_has_the_size_and_rates_of_the_model_and_plays(clip, tmp_path):
    assert clip.frames.shape == (32, 64, 64, 3)
    assert clip.frames.dtype == np.uint8
    assert (clip.audio.shape, clip.audio.dtype) == ((32000,), np.float32)
    path = clip.save(tmp_path / "new" / "clip.mp4")
    played = decode_clip(str(path), start_s=0, end_s=2.0, fps=16, size=(64, 64), sample_rate=16000)
    assert played.video_THWC is not None
    assert played.audio_N is not None
    assert np.abs(played.video_THWC.astype(int) - clip.frames).mean() < 4


def test_the_same_seed_makes_the_same_clip_and_another_seed_another(pipe, clip):
    again = pipe(Prompt(PROMPT), seed=4)
    assert again.sha256 == clip.sha256
    assert np.array_equal(again.frames, clip.frames)
    other = pipe(PROMPT, seed=5)
    assert other.sha256 != clip.sha256
    drawn = {pipe(PROMPT, num_frames=4, num_inference_steps=1).seed for _ in range(3)}
    assert len(drawn) == 3


def test_the_number_of_threads_changes_nothing(pipe):
    before = torch.get_num_threads()
    found = set()
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        found.add(pipe(PROMPT, seed=3, num_frames=8).sha256)
        assert torch.get_num_threads() == threads
    torch.set_num_threads(before)
    assert len(found) == 1


def test_a_beginning_is_kept_and_gone_on_with(pipe, episode, tmp_path):
    write_clip(tmp_path / "given.mp4", episode.video_THWC, episode.audio_N, fps=16, sample_rate=16000)
    made = pipe(PROMPT, video=tmp_path / "given.mp4", seed=1)
    assert len(made.frames) == 64  # two given seconds, two new ones
    error = made.frames[:30].astype(float) - episode.video_THWC[:30]
    assert 10 * np.log10(255**2 / np.square(error).mean()) > 24
    whole = pipe(PROMPT, video=episode.video_THWC[:18], num_frames=24, seed=1)  # whole chunks of 18 are 16
    assert len(whole.frames) == 24
    moved = np.abs(whole.frames[18:24].astype(int) - whole.frames[15].astype(int)).max()
    assert moved > 60


def test_an_image_is_the_first_picture(pipe, episode):
    made = pipe(PROMPT, image=episode.video_THWC[0], num_frames=16, seed=1)
    error = made.frames[1].astype(float) - episode.video_THWC[0]
    assert 10 * np.log10(255**2 / np.square(error).mean()) > 24


def test_given_sound_is_kept_and_decides_the_picture(pipe, episode):
    silence = np.zeros(32000, np.float32)
    heard, quiet = (pipe(PROMPT, audio=sound, seed=1) for sound in (episode.audio_N, silence))
    latents = pipe.audio.encode(episode.audio_N)
    assert torch.allclose(heard.latents.audio[0], latents.float(), atol=1e-5)
    assert not np.array_equal(heard.frames, quiet.frames)
    assert np.abs(quiet.audio).max() < 0.05


@pytest.mark.parametrize("alone", ["picture", "sound"])
def test_a_model_of_one_modality_makes_that_alone(pipe, episode, tmp_path, alone):
    objective = pipe.cfg.objective.model_copy(update={f"{alone}_alone": 1.0})
    cfg = pipe.cfg.model_copy(update={"objective": objective})
    own = WorldModelPipeline(pipe.model, cfg, pipe.prediction, video=pipe.video, audio=pipe.audio, name="own")
    made = own(PROMPT, num_frames=8, num_inference_steps=2, seed=1)
    assert (made.frames.shape, made.audio.shape) == ((8, 64, 64, 3), (8000,))
    assert (made.frames.any(), made.audio.any()) == (alone == "picture", alone == "sound")
    info = probe(str(made.save(tmp_path / "clip.mp4")))
    assert (info.has_video, info.has_audio) == (alone == "picture", alone == "sound")
    given, said = {
        "picture": ({"audio": episode.audio_N}, "audio is given, and own was trained without sound"),
        "sound": ({"image": episode.video_THWC[0]}, "a picture is given, and own was trained without any"),
    }[alone]
    with pytest.raises(BadRequest, match=said):
        own(PROMPT, **given)


def test_steps_and_guidance_are_the_models_own_unless_given(pipe):
    rollout = pipe.cfg.rollout.model_copy(update={"guidance_text": 4.0, "steps": 2})
    own = WorldModelPipeline(
        pipe.model,
        pipe.cfg.model_copy(update={"rollout": rollout}),
        pipe.prediction,
        video=pipe.video,
        audio=pipe.audio,
        name="own",
    )
    asked = pipe(PROMPT, seed=1, num_frames=8, guidance_scale=4.0, num_inference_steps=2)
    assert own(PROMPT, seed=1, num_frames=8).sha256 == asked.sha256
    assert own(PROMPT, seed=1, num_frames=8, guidance_scale=1.0).sha256 != asked.sha256


def test_progress_is_told_chunk_by_chunk(pipe):
    told: list[tuple[int, int]] = []
    pipe(
        PROMPT, num_frames=12, num_inference_steps=1, progress=lambda done, total: told.append((done, total))
    )
    assert told == [(1, 3), (2, 3), (3, 3)]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_frames": 30}, "num_frames=30 is not a multiple of 4 from 4 on; use 32"),
        ({"num_frames": 0}, "use 4"),
        ({"height": 96}, "96x64 is asked, and bounce makes 64x64; use that"),
        ({"frame_rate": 24}, "frame_rate=24 is asked, and bounce makes 16"),
        ({"num_inference_steps": 0}, "num_inference_steps must be at least 1"),
        ({"guidance_scale": -1.0}, "guidance at least 0"),
        ({"video": np.zeros((16, 64, 64, 3), np.uint8), "num_frames": 16}, "fills all of num_frames=16"),
        ({"video": np.zeros((3, 64, 64, 3), np.uint8)}, "3 frames are less than a chunk of 4"),
        ({"video": np.zeros((8, 32, 32, 3), np.uint8)}, r"must be finite uint8 of \[any, 64, 64, 3\]"),
        ({"audio": np.zeros(16000, np.float32)}, "1.00 s of sound for a clip of 2.00 s; give more"),
        ({"audio": np.full(32000, np.nan, np.float32)}, "audio must be finite float32"),
        ({"seed": -1}, "seed=-1 is below 0"),
        (
            {"video": np.zeros((8, 64, 64, 3), np.uint8), "audio": np.zeros(4000, np.float32)},
            "0.25 s of sound for a clip of 0.50 s",
        ),
        ({"image": "missing.png"}, r"missing\.png"),
        ({"image": __file__}, r"image .*test_pipeline"),
        ({"image": np.zeros((64, 64, 3), np.uint8), "video": "x.mp4"}, "image and video are both given"),
    ],
)
def test_what_cannot_be_made_is_refused_in_words(pipe, arguments, message):
    with pytest.raises(BadRequest, match=message):
        pipe(PROMPT, **arguments)


def test_prompts_that_the_model_cannot_follow_are_refused(pipe):
    with pytest.raises(PromptError, match="this model does not speak"):
        pipe('a man says "hello"')
    room = pipe.cfg.model.text_tokens
    with pytest.raises(PromptError, match=f"this model reads {room}"):
        pipe("a red steel ball, moving left" + " and a blue wooden one" * (room // 22))
    with pytest.raises(ValueError, match="nothing-here: not an exported model"):
        WorldModelPipeline.from_pretrained(Path("nothing-here"))
