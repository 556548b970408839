"""Spoken GRID sentences: bit-identical on repeat, timed, and read back by the recogniser."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from worldmodel.worlds.recognise import transcribe, word_error_rate
from worldmodel.worlds.speech import (
    GRID,
    VOICES,
    SpeechError,
    Utterance,
    grid_sentence,
    grid_utterance,
    speak,
)

pytest.importorskip("espeakng_loader", reason="needs the extra worldmodel[speech]")
pytest.importorskip("pocketsphinx", reason="needs the extra worldmodel[speech]")


@pytest.fixture(scope="module")
def utterances() -> list[Utterance]:
    return [grid_utterance(seed=seed) for seed in range(20)]


def test_the_same_seed_speaks_bit_identically(utterances: list[Utterance]):
    for seed in (0, 7, 13):
        again = grid_utterance(seed=seed)
        assert np.array_equal(again.audio_N, utterances[seed].audio_N)
        assert (again.words, again.phonemes) == (utterances[seed].words, utterances[seed].phonemes)


def test_sentences_fill_every_slot_of_the_grammar():
    rng = np.random.default_rng(0)
    sentences = [grid_sentence(rng).split() for _ in range(300)]
    for slot, words in enumerate(GRID.values()):
        assert {sentence[slot] for sentence in sentences} == set(words)
    assert "w" not in GRID["letter"]


def test_audio_is_float_mono_below_full_scale_and_heard(utterances: list[Utterance]):
    for utterance in utterances:
        assert utterance.audio_N.dtype == np.float32
        assert utterance.sample_rate == 22050
        assert 0.1 < np.abs(utterance.audio_N).max() <= 1.0
        assert 1.0 < len(utterance.audio_N) / utterance.sample_rate < 3.5


def test_word_events_are_the_words_said_in_order(utterances: list[Utterance]):
    for utterance in utterances:
        assert [word.name for word in utterance.words] == utterance.text.split()


def test_events_follow_each_other_and_end_with_the_sound(utterances: list[Utterance]):
    for utterance in utterances:
        for events in (utterance.words, utterance.phonemes):
            assert all(event.start_s <= event.end_s for event in events)
            assert all(a.end_s == b.start_s for a, b in pairwise(events))
            assert events[-1].end_s == len(utterance.audio_N) / utterance.sample_rate


def test_a_phoneme_event_lies_where_the_sound_is():
    said = speak("see two", words_per_minute=120)
    by_name = {phoneme.name.strip("'"): phoneme for phoneme in said.phonemes}

    def zero_crossings_per_s(name: str) -> float:
        start, end = (round(t * said.sample_rate) for t in (by_name[name].start_s, by_name[name].end_s))
        return float(
            (np.diff(np.sign(said.audio_N[start:end])) != 0).sum() / (end - start) * said.sample_rate
        )

    assert zero_crossings_per_s("s") > 3 * zero_crossings_per_s("i:")  # a hiss against a vowel


def test_the_letter_a_is_its_name_and_not_the_article():
    names = [phoneme.name for phoneme in speak("place red at a two now").phonemes]
    assert names.count("'eI") == 1 + 1  # pl-a-ce and a


def test_voices_differ():
    sounds = [speak("bin blue at f two now", voice=voice).audio_N for voice in VOICES[:4]]
    assert len({(len(audio_N), float(np.square(audio_N).sum())) for audio_N in sounds}) == 4


def test_the_recogniser_reads_clean_speech_and_not_a_shuffled_list(utterances: list[Utterance]):
    heard = [transcribe(utterance.audio_N, utterance.sample_rate) for utterance in utterances]
    said = [utterance.text for utterance in utterances]
    assert word_error_rate(said, heard) < 0.15
    assert word_error_rate(said, heard[1:] + heard[:1]) > 0.6


def test_a_transcript_does_not_depend_on_those_before(utterances: list[Utterance]):
    forward = [transcribe(utterance.audio_N, utterance.sample_rate) for utterance in utterances[:6]]
    backward = [transcribe(utterance.audio_N, utterance.sample_rate) for utterance in utterances[5::-1]]
    assert forward == backward[::-1]


def test_silence_is_heard_as_nothing():
    assert transcribe(np.zeros(16000, dtype=np.float32), 16000) == ""


def test_word_error_rate_counts_words():
    assert word_error_rate(["bin blue at f two now"], ["bin blue at f two now"]) == 0
    assert word_error_rate(["bin blue at f two now"], ["bin red at f two"]) == pytest.approx(2 / 6)


def test_an_unknown_voice_is_named():
    with pytest.raises(SpeechError, match="no voice 'nobody'"):
        speak("bin blue", voice="nobody")


def test_stereo_is_refused():
    with pytest.raises(ValueError, match="mono"):
        transcribe(np.zeros((2, 100), dtype=np.float32), 16000)


def test_without_the_extra_the_message_names_it(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(
        __import__("sys").modules, "espeakng_loader", None
    )  # what an absent package looks like
    with pytest.raises(ImportError, match=r"worldmodel\[speech\]"):
        speak("bin blue")
