"""Prompts in three forms, and those that no clip can be made from."""

from __future__ import annotations

import pytest

from worldmodel.config import ModelConfig
from worldmodel.prompt import Prompt, PromptError

SPOKEN = Prompt("a man says", "bin blue at f two now")


@pytest.mark.parametrize(
    "text",
    [
        'a man says "bin blue at f two now"',
        "a man says “bin blue at f two now”",
        "a man says <S>bin blue at f two now<E>",
        '  a man   says:  "bin blue\n at f two now" ',
        'a man says "bin blue" "at f two now"',
        '{"caption": "a man says", "speech": "bin blue at f two now"}',
        '{"prompt": "a man says", "transcript": "bin blue at f two now"}',
        '{"caption": "a man says", "speech": [{"text": "bin blue"}, {"text": "at f two now", "start": 1}]}',
        '{"caption": "a man says", "speech": ["bin blue", "at f two now"]}',
    ],
)
def test_all_forms_of_a_spoken_prompt_mean_the_same(text):
    assert Prompt.parse(text) == SPOKEN


@pytest.mark.parametrize(
    ("text", "prompt"),
    [
        ("a red steel ball", Prompt("a red steel ball")),
        ('"hello"', Prompt("", "hello")),
        ('a man says "hello", and smiles.', Prompt("a man says, and smiles.", "hello")),
        (
            "the man's ball, moving left",
            Prompt("the man's ball, moving left"),
        ),  # an apostrophe quotes nothing
    ],
)
def test_what_is_outside_the_quotes_is_the_caption(text, prompt):
    assert Prompt.parse(text) == prompt


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "the prompt is empty"),
        ('  "" ', "the prompt is empty"),
        ("{}", "the prompt is empty"),
        ('a man says "hello', 'opens or closes speech with "'),
        ("a man says hello<E>", "opens or closes speech with <E>"),
        ('{"caption": "a', "is not JSON"),
        ('{"caption": "a", "fps": 3}', "a prompt has no fps; it has caption"),
        ('{"caption": "a", "voice": ["x"]}', r"are text, got 'a', '' and \['x'\]"),
        ('{"caption": 3}', "are text, got 3"),
    ],
)
def test_what_cannot_be_read_is_refused_in_words(text, message):
    with pytest.raises(PromptError, match=message):
        Prompt.parse(text)


def test_a_prompt_is_held_against_what_the_model_reads():
    speaks = ModelConfig(text_tokens=16, speech_bytes=24)
    SPOKEN.check(speaks)
    with pytest.raises(PromptError, match="this model does not speak, and the prompt says 'bin blue"):
        SPOKEN.check(ModelConfig(text_tokens=16))
    with pytest.raises(
        PromptError, match=r"the caption is 10 bytes long and this model reads 8.*leave out 2"
    ):
        SPOKEN.check(ModelConfig(text_tokens=8, speech_bytes=24))
    with pytest.raises(
        PromptError, match=r"the speech is 21 bytes long and this model reads 20.*leave out 1"
    ):
        SPOKEN.check(ModelConfig(text_tokens=16, speech_bytes=20))
    with pytest.raises(PromptError, match="11 bytes long and this model reads 10"):  # bytes, not letters
        Prompt("Bälle rollt"[:10]).check(ModelConfig(text_tokens=10))


def test_a_voice_is_one_that_the_model_knows():
    model = ModelConfig(text_tokens=48, speech_bytes=24, voices=("a man", "a woman"))
    named = Prompt.parse('{"voice": "a woman", "caption": "with red hair", "speech": "bin blue"}')
    assert (named.caption, named.speech) == ("a woman with red hair says", "bin blue")
    named.check(model)
    assert Prompt.parse('{"voice": "a man", "speech": "bin blue"}').caption == "a man says"
    with pytest.raises(PromptError, match="no voice is named 'a robot'; this model has 'a man', 'a woman'"):
        Prompt.parse('{"voice": "a robot", "speech": "bin blue"}').check(model)
    with pytest.raises(PromptError, match="this model has none to choose from"):
        named.check(ModelConfig(text_tokens=48, speech_bytes=24))
