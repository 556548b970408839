"""Captions by small random models of real families: frames go in, the words that the model wrote come out."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from avtok.mux import write_clip
from avtok.reader import open_reader
from ray_jobs.index import index_sources, read_manifest
from ray_jobs.labels.captioner import FRAMES, Captioner, most_agreed
from ray_jobs.labels.loading import written
from ray_jobs.labels.media import LONGEST_SIDE, ClipMedia
from ray_jobs.labels.models import find_models
from ray_jobs.labels.said import Guess
from tests.ray_jobs.label_models import (
    CAPTION_WORDS,
    save_blip,
    save_git,
    save_llava,
    save_vision_encoder_decoder,
)
from worldmodel.config import LabelConfig

pytest.importorskip("transformers", reason="needs the extra worldmodel[pretrained]")

FAMILIES = {
    "blip": save_blip,
    "git": save_git,
    "git_video": lambda folder: save_git(folder, frames=4),
    "vision_encoder_decoder": save_vision_encoder_decoder,
    "llava": save_llava,
}


@pytest.fixture(scope="module")
def captioner(request, tmp_path_factory):
    folder = FAMILIES[request.param](tmp_path_factory.mktemp(request.param) / request.param)
    model = find_models(LabelConfig(captioner=str(folder))).captioner
    assert model is not None
    return Captioner(model, gpu=False)


def frames(seed, count=3):
    return list(np.random.default_rng(seed).integers(0, 255, (count, 40, 64, 3), dtype=np.uint8))


@pytest.mark.parametrize("captioner", FAMILIES, indirect=True)
def test_every_family_writes_words_of_its_vocabulary_with_a_confidence(captioner):
    clips = [frames(seed, captioner.num_frames) for seed in range(2)]
    guesses = captioner.caption(clips)
    assert len(guesses) == len(clips)
    for guess in guesses:
        assert 0 < guess.confidence <= 1
        assert set(guess.text.split()) <= {*CAPTION_WORDS, "[UNK]"}
        assert guess.text


@pytest.mark.parametrize("captioner", ["blip", "vision_encoder_decoder", "llava"], indirect=True)
def test_a_caption_does_not_depend_on_the_clips_beside_it(captioner):
    clips = [frames(seed, captioner.num_frames) for seed in range(3)]
    together = captioner.caption(clips)
    for clip, guess in zip(clips, together, strict=True):
        (alone,) = captioner.caption([clip])
        assert (alone.text, alone.confidence) == (guess.text, pytest.approx(guess.confidence, rel=1e-3))


@pytest.mark.parametrize("captioner", ["git_video", "llava"], indirect=True)
def test_a_model_that_takes_several_frames_sees_all_of_them(captioner):
    clip = frames(0, captioner.num_frames)
    seen: list[tuple[int, ...]] = []

    def note(_, args, kwargs):
        tensors = [x for x in (*args, *kwargs.values()) if isinstance(x, torch.Tensor)]
        seen.extend(tuple(x.shape) for x in tensors if x.shape[-3:] == (3, 32, 32))

    hooks = [
        part.register_forward_pre_hook(note, with_kwargs=True) for part in captioner.loaded.model.modules()
    ]
    captioner.caption([clip])
    for hook in hooks:
        hook.remove()
    assert captioner.num_frames in seen[0][:-3]


def test_confidence_is_the_mean_probability_of_what_was_written():
    logits = torch.log(torch.tensor([[[0.5, 0.25, 0.25]], [[0.1, 0.8, 0.1]], [[0.2, 0.2, 0.6]]]))

    class Out:
        sequences = torch.tensor([[9, 0, 1, 2]])  # a prompt of one, two words, the end

    Out.logits = tuple(logits)
    rows, confidences = written(Out, special={2, 9})
    assert rows == [[0, 1]]
    assert confidences == [pytest.approx((0.5 + 0.8) / 2)]


def test_the_caption_that_agrees_with_the_others_is_taken_and_else_the_middle_one():
    told = [Guess("a black screen", 0.9), Guess("a man in a suit", 0.5), Guess("a man in a black suit", 0.4)]
    assert most_agreed(told).text == "a man in a black suit"
    assert most_agreed([Guess("one", 0.1), Guess("two", 0.2), Guess("three", 0.3)]).text == "two"


def test_frames_are_spread_over_the_clip_and_nothing_is_cut_off(tmp_path):
    video_THWC = np.zeros((40, 32, 96, 3), np.uint8)
    for i, shade in enumerate((60, 120, 180, 240)):
        video_THWC[10 * i : 10 * i + 10] = shade
    video_THWC[:, :, -12:] = 0  # a black bar at the right end
    write_clip(tmp_path / "wide.mp4", video_THWC, None, fps=20, sample_rate=16000)
    index_sources([str(tmp_path)], out=str(tmp_path / "m.parquet"), limits=None)
    (row,) = read_manifest(str(tmp_path / "m.parquet")).to_pylist()
    found = ClipMedia(row, open_reader(limits=None)).frames(4)
    assert [frame_HWC.shape for frame_HWC in found] == [(32, 96, 3)] * 4
    assert [round(float(frame_HWC[:, :80].mean()), -1) for frame_HWC in found] == [60, 120, 180, 240]
    assert all(frame_HWC[:, -6:].mean() < 20 for frame_HWC in found)
    assert len(ClipMedia(row | {"end_s": row["start_s"]}, open_reader(limits=None)).frames(FRAMES)) == 1


def test_large_pictures_are_made_small(tmp_path):
    write_clip(tmp_path / "large.mp4", np.zeros((4, 480, 960, 3), np.uint8), None, fps=20, sample_rate=16000)
    index_sources([str(tmp_path)], out=str(tmp_path / "m.parquet"), limits=None)
    (row,) = read_manifest(str(tmp_path / "m.parquet")).to_pylist()
    (frame_HWC,) = ClipMedia(row, open_reader(limits=None)).frames(1)
    assert frame_HWC.shape == (LONGEST_SIDE // 2, LONGEST_SIDE, 3)
