"""When words are said: torchaudio's forced alignment of a transcript over the emission of a CTC model."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import cast

import torch
import torchaudio.functional as F

from ray_jobs.labels.ctc import Emission, Vocabulary
from ray_jobs.labels.said import Word

# T frames, L tokens of the transcript.

LEAST_SPELLED = 0.5  # of the words; of fewer the times would be guesses
MOST_CELLS = 1 << 30  # T x (2 L + 1) bytes of torchaudio's table


class CannotAlign(Exception):
    """A transcript that cannot be laid over its sound; the message says why."""


def align_words(emission: Emission, words: Sequence[str], vocabulary: Vocabulary) -> list[Word]:
    """Each word with its start and end in seconds of the emission's sound, and its mean probability.

    A word that the model cannot spell, such as a number, lies between its neighbours, with confidence 0.
    """
    spelled = [vocabulary.spell(word) for word in words]
    if sum(map(bool, spelled)) < max(1, LEAST_SPELLED * len(words)):
        missing = next((word for word, ids in zip(words, spelled, strict=True) if not ids), "")
        raise CannotAlign(f"the aligner cannot spell most of its words, such as {missing!r}")
    tokens, owner = _tokens(spelled, vocabulary.delimiter)
    frames, repeats = (
        len(emission.log_probs_TV),
        sum(a == b for a, b in pairwise(tokens)),
    )
    if frames < len(tokens) + repeats:
        raise CannotAlign(f"{len(tokens) + repeats} letters do not fit into {frames} frames of sound")
    if frames * (2 * len(tokens) + 1) > MOST_CELLS:
        raise CannotAlign("too long to be aligned at once; cut the clip")
    labels_1T, scores_1T = F.forced_align(
        emission.log_probs_TV[None], torch.tensor([tokens], dtype=torch.int32), blank=vocabulary.blank
    )
    spans = F.merge_tokens(labels_1T[0], scores_1T[0].exp(), blank=vocabulary.blank)
    of_word: dict[int, list[F._alignment.TokenSpan]] = {}
    for span, word in zip(spans, owner, strict=True):
        of_word.setdefault(word, []).append(span)
    timed = [
        _word(text, of_word[i], emission.frame_s) if i in of_word else None for i, text in enumerate(words)
    ]
    return _between(words, timed, frames * emission.frame_s)


def confidence_of(words: Sequence[Word]) -> float:
    """Mean over the words that were spelled."""
    told = [word.confidence for word in words if word.confidence > 0]
    return sum(told) / len(told) if told else 0.0


def _tokens(spelled: list[list[int]], delimiter: int | None) -> tuple[list[int], list[int]]:
    """All tokens in a row and, for each, the number of its word; -1 for a delimiter."""
    tokens: list[int] = []
    owner: list[int] = []
    for word, ids in enumerate(spelled):
        if ids and tokens and delimiter is not None:
            tokens.append(delimiter)
            owner.append(-1)
        tokens += ids
        owner += [word] * len(ids)
    return tokens, owner


def _word(text: str, spans: list[F._alignment.TokenSpan], frame_s: float) -> Word:
    length = sum(span.end - span.start for span in spans)
    confidence = sum(span.score * (span.end - span.start) for span in spans) / length
    return Word(text, spans[0].start * frame_s, spans[-1].end * frame_s, confidence)


def _between(texts: Sequence[str], timed: list[Word | None], end_s: float) -> list[Word]:
    """Words without times fill what lies between those that have some."""
    filled: list[Word] = []
    for i, (text, word) in enumerate(zip(texts, timed, strict=True)):
        if word is None:
            start_s = filled[-1].end_s if filled else 0.0
            later = next((w.start_s for w in timed[i + 1 :] if w is not None), end_s)
            word = Word(text, start_s, cast(float, later), 0.0)
        filled.append(word)
    return filled
