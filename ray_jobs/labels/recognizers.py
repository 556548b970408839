"""Speech recognisers behind one call: sound of at most `window_s` -> what is said."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import torch

from ray_jobs.errors import UserError
from ray_jobs.labels.ctc import CtcModel
from ray_jobs.labels.loading import load_model, written
from ray_jobs.labels.models import LabelModel
from ray_jobs.labels.pocket import PocketRecognizer
from ray_jobs.labels.said import Guess

# N samples at 16 kHz.

RATE_HZ = 16000
MOST_TOKENS = 256
PROMPT_TOKENS = 8  # start, language, task and the like count as positions too


class Recognizer(Protocol):
    window_s: float
    batch: int

    def hear(self, sounds: Sequence[np.ndarray]) -> list[Guess]: ...


def load_recognizer(model: LabelModel, *, language: str, gpu: bool) -> Recognizer:
    if model.kind == "pocketsphinx":
        return PocketRecognizer()
    if model.kind == "ctc":
        return CtcRecognizer(CtcModel(model, gpu=gpu))
    return Seq2SeqRecognizer(model, language=language, gpu=gpu)


class CtcRecognizer:
    """Greedy reading of a CTC model. Sounds are read one by one: padding would change what is heard."""

    window_s, batch = 20.0, 1

    def __init__(self, ctc: CtcModel) -> None:
        self.ctc = ctc

    def hear(self, sounds: Sequence[np.ndarray]) -> list[Guess]:
        return [self.ctc.read(self.ctc.emission(sound_N).log_probs_TV) for sound_N in sounds]


class Seq2SeqRecognizer:
    """Whisper and its like: encoder, decoder, text. Language and task are told to models that take them."""

    window_s, batch = 28.0, 8

    def __init__(self, model: LabelModel, *, language: str, gpu: bool) -> None:
        self.loaded = load_model(model, "AutoModelForSpeechSeq2Seq", gpu=gpu)
        self.special = set(self.loaded.processor.tokenizer.all_special_ids)
        self.settings = _settings(self.loaded.model, language, model.path)

    @torch.inference_mode()
    def hear(self, sounds: Sequence[np.ndarray]) -> list[Guess]:
        processor = self.loaded.processor
        made = processor(
            list(sounds), sampling_rate=RATE_HZ, return_tensors="pt", padding=_padding(processor)
        )
        out = self.loaded.model.generate(
            **self.loaded.inputs(made),
            **self.settings,
            do_sample=False,
            num_beams=1,
            return_dict_in_generate=True,
            output_logits=True,
        )
        tokens, confidences = written(out, self.special)
        texts = processor.tokenizer.batch_decode(tokens, skip_special_tokens=True)
        return [Guess(" ".join(text.split()), c) for text, c in zip(texts, confidences, strict=True)]


def _padding(processor: Any) -> str | bool:
    """Whisper's encoder takes 30 s and nothing else; others take what there is."""
    return "max_length" if hasattr(processor.feature_extractor, "nb_max_frames") else True


def _settings(model: Any, language: str, path: str) -> dict[str, Any]:
    """In the language that is spoken, never translated. UserError for a language that it cannot take."""
    generation = model.generation_config
    positions = getattr(model.config, "max_target_positions", None) or MOST_TOKENS + PROMPT_TOKENS
    known = getattr(generation, "lang_to_id", None) or {}
    if language and f"<|{language}|>" not in known and language not in known:
        takes = ", ".join(sorted(name.strip("<|>") for name in known)) or "no language: leave it out"
        raise UserError(f"{path}: language {language!r} is not one of this recogniser's; it takes {takes}")
    settings: dict[str, Any] = {"max_new_tokens": min(MOST_TOKENS, positions - PROMPT_TOKENS)}
    if known and getattr(generation, "task_to_id", None):
        settings["task"] = "transcribe"
    if language:
        settings["language"] = language
    return settings
