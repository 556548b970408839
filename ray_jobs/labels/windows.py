"""Long sound in pieces that a recogniser takes: at pauses where there are some, else with an overlap."""

from __future__ import annotations

from collections.abc import Sequence
from difflib import SequenceMatcher

from ray_jobs.labels.said import Guess, joined

OVERLAP_S = 4.0
WORDS_PER_S = 5.0  # hardly anybody says more
Span = tuple[float, float]


def packed(spans: Sequence[Span], window_s: float) -> list[Span]:
    """Stretches of speech, with the pauses between them, joined while they fit into one window."""
    parts: list[Span] = []
    for start_s, end_s in spans:
        if parts and end_s - parts[-1][0] <= window_s:
            parts[-1] = (parts[-1][0], end_s)
        else:
            parts.append((start_s, end_s))
    return parts


def overlapped(part: Span, window_s: float) -> list[Span]:
    """The windows of a part; a part that fits is its own window."""
    start_s, end_s = part
    windows = [(start_s, min(end_s, start_s + window_s))]
    while windows[-1][1] < end_s:
        start_s = windows[-1][1] - OVERLAP_S
        windows.append((start_s, min(end_s, start_s + window_s)))
    return windows


def merged(windows: Sequence[Span], guesses: Sequence[Guess]) -> Guess:
    """What was heard in overlapping windows as one text; word times, if any, become the whole sound's."""
    placed = [
        guess
        if guess.words is None
        else Guess(guess.text, guess.confidence, tuple(word.later(start_s) for word in guess.words))
        for (start_s, _), guess in zip(windows, guesses, strict=True)
    ]
    for i in range(1, len(placed)):
        overlap_s = windows[i - 1][1] - windows[i][0]
        placed[i - 1], placed[i] = _without_overlap(placed[i - 1], placed[i], windows[i][0] + overlap_s / 2)
    return joined(placed)


def _without_overlap(before: Guess, after: Guess, middle_s: float) -> tuple[Guess, Guess]:
    """Words with times are parted by the middle of the overlap, others by the words that both heard."""
    if before.words is not None and after.words is not None:
        early = tuple(word for word in before.words if (word.start_s + word.end_s) / 2 < middle_s)
        late = tuple(word for word in after.words if (word.start_s + word.end_s) / 2 >= middle_s)
        return tuple(  # pyright: ignore[reportReturnType]
            Guess(" ".join(word.text for word in words), guess.confidence, words)
            for guess, words in ((before, early), (after, late))
        )
    first, second = before.text.split(), after.text.split()
    most = round(OVERLAP_S * WORDS_PER_S)
    tail, head = first[-most:], second[:most]
    match = SequenceMatcher(None, [w.lower() for w in tail], [w.lower() for w in head]).find_longest_match()
    if not match.size:
        return before, after
    kept = first[: len(first) - len(tail) + match.a]
    return Guess(" ".join(kept), before.confidence), Guess(" ".join(second[match.b :]), after.confidence)
