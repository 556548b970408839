"""What people type -> what a model is conditioned on: a caption, and apart from it what is said.

Three forms mean the same: quoted speech (`a man says "bin blue"`), tags (`a man says <S>bin blue<E>`), and
JSON (`{"caption": "a man says", "speech": "bin blue"}`). JSON may also name a voice that the model knows:
`{"voice": "a woman", "caption": "with red hair", "speech": "bin blue"}` is "a woman with red hair says".
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any

from worldmodel.config import ModelConfig

_QUOTES = re.compile(r'"([^"]*)"|“([^”]*)”|<S>(.*?)<E>', re.DOTALL)
_LEFT_OVER = re.compile(r'["“”]|<S>|<E>')
_KEYS = {"caption", "prompt", "speech", "transcript", "voice"}


class PromptError(ValueError):
    """A prompt that no clip can be made from; one line says what, what was given, and what to do."""


@dataclass(frozen=True)
class Prompt:
    """caption: what is seen and heard. speech: what is said, without quotes; empty where nobody speaks.
    voice: whose, where the prompt names one apart; the caption then begins with it."""

    caption: str
    speech: str = ""
    voice: str = ""

    @classmethod
    def parse(cls, text: str) -> Prompt:
        """PromptError for nothing at all, an open quote, or JSON that is no prompt."""
        text = text.strip()
        if text.startswith("{"):
            return cls._from_json(text)
        said = [
            next(group for group in match.groups() if group is not None) for match in _QUOTES.finditer(text)
        ]
        seen = _QUOTES.sub(" ", text)
        if mark := _LEFT_OVER.search(seen):
            raise PromptError(
                f"the prompt opens or closes speech with {mark.group()} alone: {text!r:.80}; "
                'put what is said between two "'
            )
        return cls(_one_line(seen), _one_line(" ".join(said)))._not_empty()

    @classmethod
    def _from_json(cls, text: str) -> Prompt:
        try:
            given: dict[str, Any] = json.loads(text)
        except json.JSONDecodeError as error:
            raise PromptError(
                f'the prompt begins with {{ and is not JSON ({error}); use {{"caption": ..., "speech": ...}}'
            ) from None
        if unknown := sorted(given.keys() - _KEYS):
            raise PromptError(f"a prompt has no {', '.join(unknown)}; it has {', '.join(sorted(_KEYS))}")
        caption, speech = (
            given.get("caption", given.get("prompt", "")),
            given.get("speech", given.get("transcript", "")),
        )
        if isinstance(speech, list):  # cues, as in a manifest
            speech = " ".join(str(cue["text"] if isinstance(cue, dict) else cue) for cue in speech)
        voice = given.get("voice", "")
        if not all(isinstance(part, str) for part in (caption, speech, voice)):
            raise PromptError(
                f"caption, speech and voice of a prompt are text, got {caption!r:.40}, {speech!r:.40} and "
                f"{voice!r:.40}"
            )
        if voice:
            caption = f"{voice} {caption} says"
        return cls(_one_line(caption), _one_line(speech), voice)._not_empty()

    def _not_empty(self) -> Prompt:
        if not self.caption and not self.speech:
            raise PromptError('the prompt is empty; say what is to be seen, such as "a red steel ball"')
        return self

    def check(self, model: ModelConfig) -> None:
        """PromptError for what this model cannot read to its end, or has no place for."""
        if self.speech and not model.speech_bytes:
            raise PromptError(
                f"this model does not speak, and the prompt says {self.speech!r:.40}; take the quotes "
                "away, or use a model with model.speech_bytes"
            )
        if self.voice and self.voice not in model.voices:
            known = ", ".join(repr(voice) for voice in model.voices)
            raise PromptError(
                f"no voice is named {self.voice!r:.40}; this model has {known or 'none to choose from'}"
            )
        for name, text, room in (
            ("caption", self.caption, model.text_tokens),
            ("speech", self.speech, model.speech_bytes),
        ):
            if (length := len(text.encode())) > room:
                raise PromptError(
                    f"the {name} is {length} bytes long and this model reads {room}: {text!r:.60}; leave out "
                    f"{length - room}"
                )


def _one_line(text: str) -> str:
    """Single spaces, and none before a comma or a full stop that followed a quote."""
    return re.sub(r"\s+([,.;!?])", r"\1", " ".join(text.split())).strip(" ,;:")
