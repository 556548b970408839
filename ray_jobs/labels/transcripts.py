"""Transcripts of a group of clips: where speech is, in windows, through the recogniser, and joined again."""

from __future__ import annotations

from ray_jobs.labels.attempts import each, readable
from ray_jobs.labels.marks import LeftOut
from ray_jobs.labels.media import ClipMedia
from ray_jobs.labels.recognizers import Recognizer
from ray_jobs.labels.said import Guess
from ray_jobs.labels.speech import speech_spans
from ray_jobs.labels.windows import Span, merged, overlapped, packed

NO_SPEECH = "no speech"
Heard = list[tuple[Span, Guess]]  # parts of a clip, in seconds of its file; words count from there too


def transcribe(recognizer: Recognizer, clips: dict[int, ClipMedia]) -> dict[int, Heard | LeftOut]:
    """For each clip what was heard in which part of it, or why nothing was."""
    found = {i: readable(lambda clip=clip: _parts(clip, recognizer.window_s)) for i, clip in clips.items()}
    heard: dict[int, Heard | LeftOut] = {
        i: parts if isinstance(parts, LeftOut) else [] if parts else LeftOut(NO_SPEECH)
        for i, parts in found.items()
    }
    windows = [
        (i, part, overlapped(part, recognizer.window_s))
        for i, parts in found.items()
        if not isinstance(parts, LeftOut)
        for part in parts
    ]
    guesses = _hear(recognizer, clips, [(i, window) for i, _, own in windows for window in own])
    for i, part, own in windows:
        told = [guesses[i, window] for window in own]
        so_far, bad = heard[i], next((guess for guess in told if isinstance(guess, LeftOut)), None)
        if isinstance(so_far, LeftOut):
            continue
        if bad is not None:
            heard[i] = bad
        else:
            so_far.append((part, merged(own, [guess for guess in told if isinstance(guess, Guess)])))
    return heard


def _parts(clip: ClipMedia, window_s: float) -> list[Span]:
    spans = speech_spans(clip.blocks())
    return packed([(clip.start_s + start_s, clip.start_s + end_s) for start_s, end_s in spans], window_s)


def _hear(
    recognizer: Recognizer, clips: dict[int, ClipMedia], windows: list[tuple[int, Span]]
) -> dict[tuple[int, Span], Guess | LeftOut]:
    """As many windows at a time as the recogniser takes, of one clip or of several."""
    told: dict[tuple[int, Span], Guess | LeftOut] = {}
    for start in range(0, len(windows), recognizer.batch):
        batch = windows[start : start + recognizer.batch]
        sounds = [readable(lambda i=i, window=window: clips[i].sound(*window)) for i, window in batch]
        told |= dict(zip(batch, each(recognizer.hear, sounds), strict=True))
    return told
