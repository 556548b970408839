"""Cues of single words, as plans and pages read them: when each word of a transcript is said."""

from __future__ import annotations

import json
from collections.abc import Sequence

from ray_jobs.labels.align import align_words
from ray_jobs.labels.ctc import CtcModel
from ray_jobs.labels.marks import Row, cues_of, value_of
from ray_jobs.labels.media import ClipMedia
from ray_jobs.labels.said import Word
from ray_jobs.labels.transcripts import Heard
from ray_jobs.labels.windows import Span


def time_heard(aligner: CtcModel, clip: ClipMedia, heard: Heard) -> list[Word]:
    """Part by part, for a recogniser's text is of a part. CannotAlign, ClipError."""
    return [
        word for part, guess in heard if guess.text for word in _time(aligner, clip, part, guess.text.split())
    ]


def time_written(aligner: CtcModel, clip: ClipMedia, words: Sequence[str]) -> list[Word]:
    """Over the whole clip: nobody knows where in it the text is said. CannotAlign, ClipError."""
    return _time(aligner, clip, (clip.start_s, clip.end_s), words)


def cues_json(words: Sequence[Word], speakers: Sequence[str] = ()) -> str:
    """One cue a word, so that every cut of a clip gets the words that begin in it."""
    cues = [
        {
            "start": round(word.start_s, 3),
            "end": round(word.end_s, 3),
            "text": word.text,
            "confidence": round(word.confidence, 3),
        }
        for word in words
    ]
    for cue, speaker in zip(cues, speakers, strict=False):
        if speaker:
            cue["speaker"] = speaker
    return json.dumps(cues, ensure_ascii=False)


def written_words(row: Row) -> tuple[list[str], list[str]]:
    """The words that are there, and who says each: of the transcript, or of cues without times."""
    cues = cues_of(row)
    if cues:
        pairs = [(w, str(cue.get("speaker") or "")) for cue in cues for w in str(cue["text"]).split()]
        return [word for word, _ in pairs], [speaker for _, speaker in pairs]
    return value_of(row, "transcript").split(), []


def _time(aligner: CtcModel, clip: ClipMedia, span: Span, words: Sequence[str]) -> list[Word]:
    emission = aligner.emission(clip.sound(*span))
    return [word.later(span[0]) for word in align_words(emission, words, aligner.vocabulary)]
