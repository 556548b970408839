"""When words are said, against sound of which every time is known: a small reader of tones, trained here."""

from __future__ import annotations

import json

import jiwer
import numpy as np
import pytest
import torch

from ray_jobs.index import index_sources, read_manifest
from ray_jobs.labels.align import CannotAlign, align_words, confidence_of
from ray_jobs.labels.ctc import CtcModel, Emission, Vocabulary
from ray_jobs.labels.labeler import Labeler, LabelSettings, Task
from ray_jobs.labels.marks import Made, wanted_fields, with_outcome
from ray_jobs.labels.models import find_models
from tests.ray_jobs.label_models import (
    FRAME,
    RATE_HZ,
    letter_tokenizer,
    tone_speech,
    write_clip_with_sound,
)
from worldmodel.config import LabelConfig

pytest.importorskip("transformers", reason="needs the extra worldmodel[pretrained]")

FRAME_S = FRAME / RATE_HZ
BLANK, DELIMITER = 0, 2


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory) -> Vocabulary:
    return Vocabulary(letter_tokenizer(tmp_path_factory.mktemp("letters")), BLANK, DELIMITER)


def emission_of(tokens, *, sure=0.9) -> Emission:
    """One token a frame, with the rest of the probability spread evenly."""
    probs_TV = torch.full((len(tokens), 11), (1 - sure) / 10)
    probs_TV[torch.arange(len(tokens)), torch.tensor(tokens)] = sure
    return Emission(probs_TV.log(), FRAME_S)


# "ab", a pause, "ccd" with a blank between the equal letters
HAND_MADE = [0, 0, 3, 3, 4, 0, 2, 2, 0, 5, 0, 5, 6, 6, 0]


def test_words_begin_and_end_with_the_frames_of_their_letters(vocabulary):
    words = align_words(emission_of(HAND_MADE), ["ab", "ccd"], vocabulary)
    assert [(w.text, round(w.start_s / FRAME_S), round(w.end_s / FRAME_S)) for w in words] == [
        ("ab", 2, 5),
        ("ccd", 9, 14),
    ]
    assert [w.confidence for w in words] == pytest.approx([0.9, 0.9])


def test_case_and_punctuation_are_not_spelled_and_stay_in_the_text(vocabulary):
    words = align_words(emission_of(HAND_MADE), ['"Ab,', "C-cD!"], vocabulary)
    assert [w.text for w in words] == ['"Ab,', "C-cD!"]
    assert [round(w.start_s / FRAME_S) for w in words] == [2, 9]


def test_a_word_that_cannot_be_spelled_lies_between_its_neighbours_without_confidence(vocabulary):
    words = align_words(emission_of(HAND_MADE), ["ab", "42", "ccd"], vocabulary)
    assert [(round(w.start_s / FRAME_S), round(w.end_s / FRAME_S)) for w in words] == [
        (2, 5),
        (5, 9),
        (9, 14),
    ]
    assert words[1].confidence == 0
    assert confidence_of(words) == pytest.approx(0.9)


def test_a_transcript_of_other_letters_has_little_confidence(vocabulary):
    assert confidence_of(align_words(emission_of(HAND_MADE), ["gh", "fee"], vocabulary)) < 0.1


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["one", "2", "3", "4"], "cannot spell most of its words, such as '2'"),
        (["abcdefgh"] * 4, "do not fit into 15 frames"),
        ([], "cannot spell"),
    ],
)
def test_what_cannot_be_aligned_says_why(vocabulary, words, says):
    with pytest.raises(CannotAlign, match=says):
        align_words(emission_of(HAND_MADE), words, vocabulary)


def test_the_best_tokens_are_read_as_words_with_their_double_letters(vocabulary):
    assert vocabulary.text(HAND_MADE) == "ab ccd"


@pytest.fixture(scope="module")
def reader(tone_reader) -> CtcModel:
    model = find_models(LabelConfig(recognizer=str(tone_reader))).recognizer
    assert model is not None
    return CtcModel(model, gpu=False)


def worst_error_s(words, truth) -> float:
    assert [w.text for w in words] == [text for text, _, _ in truth]
    pairs = zip(words, truth, strict=True)
    return max(max(abs(w.start_s - start), abs(w.end_s - end)) for w, (_, start, end) in pairs)


@pytest.mark.parametrize("seconds", [3.0, 45.0])  # 45 s are three windows
def test_words_of_tones_are_timed_within_one_frame_of_the_model(reader, seconds):
    said = tone_speech(np.random.default_rng(5), seconds=seconds)
    emission = reader.emission(said.sound_N)
    assert reader.frame_s == FRAME_S
    words = align_words(emission, said.text.split(), reader.vocabulary)
    assert worst_error_s(words, said.words) <= FRAME_S
    assert confidence_of(words) > 0.7
    other = list(reversed(said.text.split()))
    assert confidence_of(align_words(emission, other, reader.vocabulary)) < 0.6


def test_windows_of_a_long_sound_are_stitched_without_a_seam(reader):
    said = tone_speech(np.random.default_rng(6), seconds=45.0)
    heard = reader.read(reader.emission(said.sound_N).log_probs_TV)
    assert jiwer.cer(said.text, heard.text) < 0.03  # the tiny model itself mishears a letter in a hundred
    assert len(heard.text.split()) == len(said.text.split())


def label_one(folder, cfg, **given):
    """The row of the one clip of a folder, and what was made of it."""
    index_sources([str(folder)], out=str(folder / "m.parquet"), limits=None)
    (row,) = read_manifest(str(folder / "m.parquet")).to_pylist()
    row |= given
    models = find_models(cfg)
    task = Task(row, wanted_fields(row, models, redo=False, min_confidence=0.3))
    (outcome,) = Labeler(LabelSettings(models, 0.3, limits=None)).label([task])
    return row, outcome


@pytest.mark.parametrize("written", [True, False])
def test_sound_that_starts_late_is_timed_from_the_origin_of_the_clip(tmp_path, tone_reader, written):
    said = tone_speech(np.random.default_rng(7), seconds=5.0)
    write_clip_with_sound(tmp_path / "late.mkv", said.sound_N, sound_start_s=0.7)
    cfg = LabelConfig(aligner=str(tone_reader)) if written else LabelConfig(recognizer=str(tone_reader))
    row, outcome = label_one(tmp_path, cfg, transcript=said.text if written else "")
    assert row["audio_start_s"] - (row["video_start_s"] or 0) == pytest.approx(0.7, abs=0.01)
    speech = outcome["speech"]
    assert isinstance(speech, Made)
    cues = json.loads(speech.value)
    assert " ".join(cue["text"] for cue in cues) == said.text
    truth = [(start + 0.7, end + 0.7) for _, start, end in said.words]
    errors = [
        max(abs(cue["start"] - start), abs(cue["end"] - end))
        for cue, (start, end) in zip(cues, truth, strict=True)
    ]
    assert max(errors) <= FRAME_S
    if not written:
        assert isinstance(outcome["transcript"], Made)
        assert outcome["transcript"].value == said.text


def test_a_span_of_a_file_is_timed_in_seconds_of_the_file(tmp_path, tone_reader):
    said = tone_speech(np.random.default_rng(8), seconds=12.0)
    write_clip_with_sound(tmp_path / "long.mkv", said.sound_N)
    first = next(i for i, (_, start, _) in enumerate(said.words) if start > 6)
    start_s = (said.words[first - 1][2] + said.words[first][1]) / 2
    inside = said.words[first:]
    row, outcome = label_one(
        tmp_path,
        LabelConfig(aligner=str(tone_reader)),
        transcript=" ".join(w for w, _, _ in inside),
        start_s=start_s,
    )
    after = with_outcome(row, outcome, {"speech": "by"})
    starts = [cue["start"] for cue in json.loads(after["speech_json"])]
    assert np.abs(np.array(starts) - [start for _, start, _ in inside]).max() <= FRAME_S
    assert after["transcript"] == row["transcript"]


def test_words_and_speakers_of_cues_without_times_are_kept(tmp_path, tone_reader):
    said = tone_speech(np.random.default_rng(9), seconds=4.0)
    words = said.text.split()
    write_clip_with_sound(tmp_path / "two.mkv", said.sound_N)
    told = [{"speaker": "ann", "text": " ".join(words[:2])}, {"speaker": "bob", "text": " ".join(words[2:])}]
    row, outcome = label_one(tmp_path, LabelConfig(aligner=str(tone_reader)), speech_json=json.dumps(told))
    cues = json.loads(with_outcome(row, outcome, {})["speech_json"])
    assert [cue["text"] for cue in cues] == words
    assert [cue["speaker"] for cue in cues] == ["ann"] * 2 + ["bob"] * (len(words) - 2)
