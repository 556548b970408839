"""The talker that ships says what it is told, with its mouth."""

from __future__ import annotations

import pytest

from avtok.load import load_codec
from worldmodel.checks.of_prompts import from_prompts
from worldmodel.checks.speaking import speech_checks
from worldmodel.export import load_model
from worldmodel.model_folder import model_folder
from worldmodel.pipeline import WorldModelPipeline
from worldmodel.prompt import PromptError
from worldmodel.worlds.recognise import transcribe, word_error_rate

pytest.importorskip("espeakng_loader", reason="needs the extra worldmodel[speech]")

pytestmark = pytest.mark.slow


def test_new_sentences_are_heard_and_the_mouth_goes_with_them():
    model, cfg, _ = load_model(model_folder("talker"))
    codecs = load_codec(cfg.codec.video), load_codec(cfg.codec.audio)
    seeds = range(5_000_000_000, 5_000_000_016)
    found = speech_checks(
        from_prompts(model, cfg, *codecs, world="talker", seeds=seeds), fps=16, sample_rate=16000
    )
    words, lips = found["word_error_rate"], found["lip_offset"]
    assert words["value"] < 0.2
    assert words["baselines"]["another_sentence"] > words["value"] + 0.3
    assert abs(lips["value"]) <= 40
    assert lips["fit"] > lips["fit_of_another_voice"]


def test_a_quoted_sentence_is_said_and_guidance_away_from_it_is_not():
    pipe = WorldModelPipeline.from_pretrained("talker")
    said = "bin blue at f two now"

    def wrong(guidance: float) -> float:
        heard = [
            transcribe(pipe(f'a man says "{said}"', seed=seed, speech_guidance_scale=guidance).audio, 16000)
            for seed in range(4)
        ]
        return word_error_rate([said] * 4, heard)

    assert wrong(3.0) < 0.4
    assert wrong(0.0) > 0.5


def test_voices_are_those_of_its_captions():
    pipe = WorldModelPipeline.from_pretrained("talker")
    with pytest.raises(PromptError, match="no voice is named 'a robot'; this model has 'a man', 'a woman'"):
        pipe('{"voice": "a robot", "speech": "bin blue"}')
