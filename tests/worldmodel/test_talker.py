"""World `talker`: a mouth that follows what is heard, and the truth about both."""

from __future__ import annotations

import json

import numpy as np
import pytest

from avtok.load import load_codec
from ray_jobs.errors import UserError
from ray_jobs.index import index_sources, read_manifest
from ray_jobs.plan import make_plan
from ray_jobs.render import _row, check_render, clip_name, render_clip
from worldmodel.checks.result import scene_of
from worldmodel.config import RunConfig
from worldmodel.worlds.catalog import WORLDS, make_episode, world_settings
from worldmodel.worlds.clips import make_clips
from worldmodel.worlds.face import INSIDE
from worldmodel.worlds.mouth import REST, mouth_shape, mouth_track
from worldmodel.worlds.recognise import transcribe, word_error_rate
from worldmodel.worlds.speech import SpeechEvent
from worldmodel.worlds.talker import TALKER, TalkerSettings, is_woman, talk
from worldmodel.worlds.truth import Episode, read_truth, write_truth

pytest.importorskip("espeakng_loader", reason="needs the extra worldmodel[speech]")
pytest.importorskip("pocketsphinx", reason="needs the extra worldmodel[speech]")

NUM = 16


@pytest.fixture(scope="module")
def episodes() -> list[Episode]:
    return [make_episode(world_settings("talker"), seed=seed, duration_s=2.0) for seed in range(NUM)]


def dark_share(episode: Episode) -> np.ndarray:
    """[T]: how much of the picture is the inside of the mouth."""
    distance_THW = np.abs(episode.video_THWC.astype(int) - np.array(INSIDE)).max(-1)
    rows = slice(30, 56)  # below the eyes
    return (distance_THW[:, rows] < 40).mean(axis=(1, 2))


def test_the_same_seed_gives_the_same_bytes_and_another_seed_another_face(episodes):
    again = make_episode(world_settings("talker"), seed=3, duration_s=2.0)
    assert np.array_equal(again.video_THWC, episodes[3].video_THWC)
    assert np.array_equal(again.audio_N, episodes[3].audio_N)
    assert len({episode.video_THWC[0].tobytes() for episode in episodes}) == NUM
    assert episodes[3].video_THWC.shape == (32, 64, 64, 3)
    assert len(episodes[3].audio_N) == 32000
    assert max(float(np.abs(e.audio_N).max()) for e in episodes) <= 0.85


def test_the_mouth_in_the_picture_is_as_open_as_the_truth_says(episodes):
    for episode in episodes:
        area_T = episode.truth.mouth_T2[:, 0] * (0.9 + episode.truth.mouth_T2[:, 1])
        assert np.corrcoef(dark_share(episode), area_T)[0, 1] > 0.9


def test_mouth_and_voice_are_together(episodes):
    """Opening against loudness, moved against each other: they fit best without a shift."""
    loudness, opening = [], []
    for episode in episodes:
        frames_TN = episode.audio_N.reshape(32, 1000)
        loudness.append(np.sqrt(np.square(np.roll(frames_TN.ravel(), 500).reshape(32, 1000)).mean(1)))
        opening.append(episode.truth.mouth_T2[:, 0])
    fit = {
        shift: np.mean(
            [np.corrcoef(np.roll(a, shift), b)[0, 1] for a, b in zip(loudness, opening, strict=True)]
        )
        for shift in range(-4, 5)
    }
    assert max(fit, key=fit.__getitem__) in (-1, 0, 1)
    assert fit[0] > 0.4 > max(fit[-4], fit[4]) + 0.2


def test_lips_close_for_b_m_p_and_open_for_a():
    def at(name: str, time_s: float) -> float:
        said = [SpeechEvent("a", 0.0, 0.2), SpeechEvent(name, 0.2, 0.3), SpeechEvent("'a", 0.3, 0.5)]
        return float(mouth_track(said, np.array([time_s]))[0, 0])

    assert all(at(name, 0.25) < 0.05 < 0.85 < at(name, 0.1) for name in "bmp")
    assert 0.1 < at("b", 0.2) < 0.8  # on the way
    assert at("b", 0.6) == pytest.approx(REST[0])
    assert at("b", -0.2) == pytest.approx(REST[0])
    assert mouth_shape("'u:")[1] < mouth_shape("o@")[1] < mouth_shape("'i:")[1]  # rounded to spread
    assert mouth_shape("_:") == REST
    assert mouth_shape("'Q%")[0] < mouth_shape("Ax")[0]  # unknown ones: a consonant, a vowel


def test_words_are_heard_when_the_truth_says_so(episodes):
    heard = [transcribe(episode.audio_N, 16000) for episode in episodes]
    assert word_error_rate([e.truth.transcript for e in episodes], heard) < 0.2
    for episode in episodes:
        truth = episode.truth
        first, last = truth.words[0], truth.words[-1]
        assert " ".join(word.name for word in truth.words) == truth.transcript
        before = episode.audio_N[: int(first.start_s * 16000)]
        assert np.abs(before).max(initial=0) < 0.02
        assert last.end_s <= 2.0


def test_a_word_that_a_clip_cuts_is_not_in_its_transcript():
    whole, cut = (talk(TALKER["in"], seed=1, duration_s=duration_s).truth for duration_s in (2.5, 1.0))
    assert len(whole.words) == 6
    assert 0 < len(cut.words) < 6
    assert whole.transcript.startswith(cut.transcript)
    assert cut.words == whole.words[: len(cut.words)]
    assert whole.words[len(cut.words)].end_s > 1.0


def test_captions_say_who_speaks_and_half_of_them_how_they_look(episodes):
    for episode in episodes:
        who = "a woman" if is_woman(episode.truth.voice) else "a man"
        assert episode.truth.caption.startswith(f"{who} ")
        assert episode.truth.caption.endswith("says")
    long = sum("hair" in episode.truth.caption for episode in episodes)
    assert 3 <= long <= NUM - 3
    assert len({is_woman(episode.truth.voice) for episode in episodes}) == 2


def test_voices_out_of_distribution_are_never_in_it(episodes):
    inside, outside = TALKER["in"].voices, TALKER["ood_voice"].voices
    assert not set(inside) & set(outside)
    assert {e.truth.voice for e in episodes} <= set(inside)
    assert talk(TALKER["ood_voice"], seed=0, duration_s=1.0).truth.voice in outside


def test_any_words_can_be_said():
    truth = talk(TALKER["in"], seed=0, duration_s=2.0, text="hello from the black forest").truth
    assert truth.transcript == "hello from the black forest"
    assert [word.name for word in truth.words] == ["hello", "from", "black", "forest"]  # "the" runs into one
    cut = talk(TALKER["in"], seed=0, duration_s=1.25, text="hello from the black forest").truth
    assert cut.transcript == "hello from the black"


def test_the_truth_survives_its_file(episodes, tmp_path):
    write_truth(tmp_path / "truth.parquet", [episode.truth for episode in episodes])
    for kept, episode in zip(read_truth(tmp_path / "truth.parquet"), episodes, strict=True):
        truth = episode.truth
        assert (kept.words, kept.phonemes, kept.transcript) == (truth.words, truth.phonemes, truth.transcript)
        assert np.array_equal(kept.mouth_T2, truth.mouth_T2)
        assert kept.positions_TK2.shape == (32, 0, 2)
        assert scene_of(kept) is None  # nothing bounces


def test_a_rendered_clip_brings_its_words_into_the_plan(tmp_path):
    truth = render_clip("talker", 0, out=str(tmp_path), seed=0, duration_s=2.0)
    (tmp_path / "manifest.jsonl").write_text(json.dumps(_row(truth)) + "\n")
    index_sources([str(tmp_path / "manifest.jsonl")], out=str(tmp_path / "m.parquet"))
    (row,) = read_manifest(str(tmp_path / "m.parquet")).to_pylist()
    assert [cue["text"] for cue in json.loads(row["speech_json"])] == truth.transcript.split()
    cfg = RunConfig.model_validate({"data": {"clip_s": 1.0, "held_out": 0}, "rollout": {"prefix_s": 0.25}})
    plan = make_plan(str(tmp_path / "m.parquet"), cfg)
    said = [plan.sample(i).transcript for i in range(plan.num_samples)]
    assert " ".join(said) == truth.transcript
    assert said[0] == " ".join(word.name for word in truth.words if word.start_s < 1.0)
    assert plan.sample(0).caption == truth.caption


def test_latents_come_with_caption_and_transcript():
    cfg = RunConfig.model_validate({"model": {"text_tokens": 48, "speech_bytes": 32, "text_patch": 8}})
    codecs = load_codec("pca-4x8x8-48"), load_codec("logmel-64")
    clips = make_clips("talker", [4], cfg, *codecs)
    truth = make_episode(world_settings("talker"), seed=4, duration_s=2.0).truth
    read = bytes(int(value) - 1 for value in clips.text_EN[0] if value).decode()
    assert read == truth.caption[:48] + truth.transcript[:32]
    assert clips.text_EN.shape == (1, 80)


def test_what_cannot_be_said_or_rendered_is_refused_in_words(tmp_path, monkeypatch):
    assert WORLDS[-1] == "talker"
    with pytest.raises(ValueError, match="no split 'ood_speed'; there is in, ood_voice"):
        world_settings("talker", "ood_speed")
    with pytest.raises(
        ValueError, match="no world is named 'opera'; there is bounce_one, bounce, pusher, talker"
    ):
        world_settings("opera")
    with pytest.raises(ValueError, match="takes no actions"):
        make_episode(TALKER["in"], seed=0, duration_s=1.0, actions_T2=np.zeros((16, 2)))
    with pytest.raises(ValueError, match="less than one frame"):
        talk(TALKER["in"], seed=0, duration_s=0.01)
    with pytest.raises(ValueError, match="voices must be some of"):
        TalkerSettings(voices=("en-us+nobody",))
    with pytest.raises(ValueError, match="no voice is named 'en-us\\+nobody-at-all'; there is en-us"):
        talk(TALKER["in"], seed=0, duration_s=1.0, voice="en-us+nobody-at-all")
    monkeypatch.setattr("ray_jobs.render.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'worldmodel\[speech\]'"):
        check_render("talker", clips=1, out=tmp_path, duration_s=2.0)
    assert clip_name(0) == "clip_00000.mp4"
