"""CTC models: from sound to frame-wise log probabilities, and from these to text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ray_jobs.labels.loading import load_model
from ray_jobs.labels.models import LabelModel
from ray_jobs.labels.said import Guess

# N samples at 16 kHz, T frames of the model, V tokens.

RATE_HZ = 16000
WINDOW_S = 20.0
MARGIN_S = 1.0  # of context on both sides of a window; what is said there is taken from its neighbour


@dataclass(frozen=True)
class Emission:
    """log_probs_TV on the CPU; frame i covers [i, i + 1) * frame_s."""

    log_probs_TV: Tensor
    frame_s: float


@dataclass(frozen=True)
class Vocabulary:
    """How words are spelled for a CTC model. delimiter: the token between words, None without one."""

    tokenizer: Any
    blank: int
    delimiter: int | None

    @cached_property
    def letters(self) -> dict[str, int]:
        """Tokens of one character, without special ones."""
        special = {*self.tokenizer.all_special_ids, self.blank, self.delimiter}
        return {t: i for t, i in self.tokenizer.get_vocab().items() if len(t) == 1 and i not in special}

    @cached_property
    def is_of_letters(self) -> bool:
        return len(self.letters) > len(self.tokenizer.get_vocab()) / 2

    def spell(self, word: str) -> list[int]:
        """Letters that the model lacks, such as punctuation, are left out; in the case that it knows."""
        if not self.is_of_letters:
            ids = self.tokenizer(word, add_special_tokens=False)["input_ids"]
            return [i for i in ids if i != self.tokenizer.unk_token_id]
        forms = ((letter, letter.lower(), letter.upper()) for letter in word.replace("\u2019", "'"))
        found = (next((self.letters[f] for f in form if f in self.letters), None) for form in forms)
        return [i for i in found if i is not None]

    def text(self, tokens_T: Sequence[int]) -> str:
        """Of the best token of every frame."""
        if not self.is_of_letters:
            return " ".join(str(self.tokenizer.decode(list(tokens_T), skip_special_tokens=True)).split())
        names = {i: t for t, i in self.letters.items()} | {self.delimiter: " "}
        return " ".join("".join(names.get(token, "") for token, _ in groupby(tokens_T)).split())


class CtcModel:
    def __init__(self, model: LabelModel, *, gpu: bool) -> None:
        self.loaded = load_model(model, "AutoModelForCTC", gpu=gpu)
        tokenizer, config = self.loaded.processor.tokenizer, self.loaded.model.config
        blank = tokenizer.pad_token_id if config.pad_token_id is None else config.pad_token_id
        delimiter = getattr(tokenizer, "word_delimiter_token", None)
        self.vocabulary = Vocabulary(
            tokenizer, blank, None if delimiter is None else tokenizer.convert_tokens_to_ids(delimiter)
        )
        self.stride = self._measured_stride()

    @property
    def frame_s(self) -> float:
        return self.stride / RATE_HZ

    def emission(self, sound_N: np.ndarray) -> Emission:
        """Long sounds in windows on one grid of frames, each with context on both sides."""
        window, margin = (round(s * RATE_HZ) // self.stride * self.stride for s in (WINDOW_S, MARGIN_S))
        pieces = []
        for start in range(0, max(1, len(sound_N)), window):
            first = max(0, start - margin)
            last = start + window if start + window < len(sound_N) else len(sound_N)
            log_probs_TV = self._log_probs(sound_N[first : last + margin])
            skipped = (start - first) // self.stride
            kept = window // self.stride if last < len(sound_N) else len(log_probs_TV)
            pieces.append(log_probs_TV[skipped : skipped + kept])
        return Emission(torch.cat(pieces), self.frame_s)

    def read(self, log_probs_TV: Tensor) -> Guess:
        """The best token of every frame. Confidence: the mean, over what is not blank, of its probability."""
        best_T, tokens_T = log_probs_TV.max(-1)
        told = best_T.exp()[tokens_T != self.vocabulary.blank]
        text = self.vocabulary.text(tokens_T.tolist())
        return Guess(text, float(told.mean()) if len(told) and text else 0.0)

    @torch.inference_mode()
    def _log_probs(self, sound_N: np.ndarray) -> Tensor:
        made = self.loaded.processor(sound_N, sampling_rate=RATE_HZ, return_tensors="pt")
        logits_1TV = self.loaded.model(**self.loaded.inputs(made)).logits
        return logits_1TV[0].float().log_softmax(-1).cpu()

    def _measured_stride(self) -> int:
        """Samples from one frame to the next; by running it, for not every family's config says so."""
        short, long = 4 * RATE_HZ, 12 * RATE_HZ
        frames = [len(self._log_probs(np.zeros(n, np.float32))) for n in (short, long)]
        return round((long - short) / (frames[1] - frames[0]))
